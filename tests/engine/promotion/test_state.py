import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.artifact import seal_of
from engine.promotion.state import Event, State

VERSIONS = [f"{number:016x}" for number in range(6)]


def switched(*switches: tuple[str, str]) -> State:
    """A state after (action, letter of the version) in turn; every version is a model of its own."""
    state = State()
    for action, letter in switches:
        version = VERSIONS["abcdef".index(letter)]
        state = state.after(Event("2026-01-02T03:04:05+0000", action, version, f"model {letter}", state.current, "r"))
    return state


def letters(versions) -> str:
    return "".join("abcdef"[VERSIONS.index(version)] for version in versions)


def test_nothing_is_in_service_before_the_first_switch():
    assert (State().current, State().last, State().standing, State().incumbent_of("model a")) == (None, None, (), None)


def test_going_back_leads_through_what_was_replaced_and_takes_away_what_came_since():
    state = switched(("promoted", "a"), ("promoted", "b"), ("promoted", "c"))
    assert letters(state.standing) == "abc"
    state = switched(("promoted", "a"), ("promoted", "b"), ("promoted", "c"), ("rolled back", "a"), ("promoted", "d"))
    assert letters(state.standing) == "ad"
    again = switched(("promoted", "a"), ("promoted", "b"), ("rolled back", "a"), ("rolled back", "b"))
    assert letters(again.standing) == "ab"


def test_a_model_serves_under_any_version_and_is_forced_as_it_was_put_there_last():
    state = switched(("forced", "a"), ("promoted", "b"))
    assert (state.serves("model b"), state.serves("model a"), state.is_forced()) == (True, False, False)
    back = switched(("forced", "a"), ("promoted", "b"), ("rolled back", "a"))
    assert (back.serves("model a"), back.is_forced()) == (True, True)
    assert (State().serves("model a"), State().is_forced()) == (False, False)


def test_a_model_is_held_against_what_is_in_service_and_in_service_against_what_it_replaced_first():
    state = switched(("promoted", "a"), ("promoted", "b"))
    assert state.incumbent_of("model c") == VERSIONS[1]
    assert state.incumbent_of("model b") == VERSIONS[0]
    back = switched(("promoted", "a"), ("promoted", "b"), ("rolled back", "a"))
    assert back.incumbent_of("model b") == VERSIONS[0]
    assert back.incumbent_of("model a") is None
    twice = switched(("promoted", "a"), ("promoted", "b"), ("promoted", "c"), ("forced", "a"))
    assert twice.incumbent_of("model a") is None


@given(st.lists(st.tuples(st.sampled_from(["promoted", "forced", "rolled back"]), st.sampled_from("abcdef"))))
def test_what_is_written_is_read_again_and_what_stands_ends_with_what_is_in_service(switches):
    state = switched(*switches)
    assert State.parse(state.to_json()) == state
    assert (state.standing[-1] if state.standing else None) == state.current
    assert set(state.standing) <= {event.version for event in state.events}


@given(st.text())
def test_any_other_text_is_refused_with_a_reason(text):
    with pytest.raises(ValueError, match=r"\w"):
        State.parse(text)


@given(st.integers(0, 2000), st.integers(0, 7))
def test_no_bit_can_be_changed_unnoticed(place, bit):
    whole = switched(("promoted", "a"), ("forced", "b")).to_json().encode()
    place %= len(whole)
    changed = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    try:
        text = changed.decode()
        assert json.loads(text) == json.loads(whole)  # a space between two marks
    except (ValueError, AssertionError):
        with pytest.raises(ValueError, match=r"\w"):
            State.parse(changed.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "../../etc"}, "no key"),
        ({"replaced": VERSIONS[3]}, "follow"),
        ({"replaced": 7}, "no key"),
        ({"action": "moved"}, "lacks"),
        ({"run": None}, "lacks"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_with_a_seal_that_makes_no_sense_is_refused(change, why):
    told = json.loads(switched(("promoted", "a")).to_json())
    del told["seal"]
    told["events"][0] |= change
    told["version"] = told["events"][0]["version"]
    with pytest.raises(ValueError, match=why):
        State.parse(json.dumps(told | {"seal": seal_of(told)}))


def test_a_file_that_names_another_version_than_its_last_switch_is_refused():
    state = switched(("promoted", "a"))
    told = json.loads(state.to_json()) | {"version": VERSIONS[1]}
    del told["seal"]
    with pytest.raises(ValueError, match="follow"):
        State.parse(json.dumps(told | {"seal": seal_of(told)}))
    with pytest.raises(ValueError, match="follow"):
        State.parse(State((replace(state.events[0], replaced=VERSIONS[2]),)).to_json())
