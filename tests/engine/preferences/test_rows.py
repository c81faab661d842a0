from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.preferences.comparisons import Pair
from engine.preferences.formats import FORMATS, Format, candidates
from engine.preferences.ledger import Refusal

(PROMPT,), (QUERY,) = candidates(name="prompt/chosen/rejected"), candidates(name="query/chosen/rejected")
(DIALOGUES,), (SYSTEM,) = candidates(name="hh-rlhf"), candidates({"system": "背景"}, "prompt/chosen/rejected")
TEXT = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{who}: {turn}" for who, turn in zip(["Human", "Assistant"] * len(turns), turns, strict=False))


def read(form: Format, **row: Any) -> Pair:
    pairs = form.read(row)
    assert isinstance(pairs, list) and len(pairs) == 1, pairs
    return pairs[0]


def reason(form: Format, **row: Any) -> str:
    refusal = form.read(row)
    assert isinstance(refusal, Refusal), refusal
    return refusal.reason


def test_a_text_row_becomes_a_question_and_two_answers_kept_as_they_are() -> None:
    pair = read(PROMPT, prompt=" Who?\n", chosen="Me. ", rejected="You.")
    assert pair.prompt == [{"role": "user", "content": " Who?\n"}]
    assert (pair.chosen, pair.rejected) == ("Me. ", "You.")


def test_query_and_prompt_are_two_names_of_the_same_pair() -> None:
    assert read(QUERY, query="Who?", chosen="Me.", rejected="You.") == read(PROMPT, **TEXT)


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_pair_id_depends_on_each_text(field: str) -> None:
    assert read(PROMPT, **TEXT | {field: "Other."}).pair_id != read(PROMPT, **TEXT).pair_id


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": None}, "null_field"),
        ({"chosen": 3}, "not_a_string"),
        ({"chosen": ["Me."]}, "not_a_string"),
        ({"prompt": " \n"}, "empty_prompt"),
        ({"chosen": ""}, "empty_response"),
        ({"rejected": "\t"}, "empty_response"),
        ({"rejected": "Me. "}, "chosen_equals_rejected"),
        ({"prompt": "\ud800"}, "not_unicode"),
        ({"images": ["a.png"]}, "image_content"),
    ],
)
def test_a_row_that_holds_no_comparison_is_refused_by_name(change: dict[str, Any], expected: str) -> None:
    assert reason(PROMPT, **TEXT | change) == expected


def test_a_row_that_lacks_a_column_is_refused() -> None:
    assert reason(PROMPT, prompt="Who?", chosen="Me.") == "missing_field"


def test_a_system_column_is_read_where_the_field_map_names_it() -> None:
    assert read(SYSTEM, **TEXT, 背景="Be brief.").prompt[0] == {"role": "system", "content": "Be brief."}
    assert read(SYSTEM, **TEXT, 背景="") == read(SYSTEM, **TEXT) == read(PROMPT, **TEXT, 背景="Be brief.")
    assert reason(SYSTEM, **TEXT, 背景=3) == "not_a_string"


def test_a_column_that_the_field_map_names_must_be_there() -> None:
    assert SYSTEM.lacks(TEXT) == ["背景"] and not SYSTEM.lacks([*TEXT, "背景"]) and not PROMPT.lacks(TEXT)


def test_whole_dialogues_become_messages_and_their_last_turns() -> None:
    pair = read(
        DIALOGUES, chosen=dialogue("Hi", "Hello", "Who?", "Me. "), rejected=dialogue("Hi", "Hello", "Who?", "You.")
    )
    roles_and_contents = [(message["role"], message["content"]) for message in pair.prompt]
    assert roles_and_contents == [("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")]
    assert (pair.chosen, pair.rejected) == ("Me.", "You.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (dialogue("Hi", ""), dialogue("Hi", "A"), "empty_response"),
        (dialogue("Hi", "A"), dialogue("Ho", "B"), "prompts_differ"),
        ("just text", dialogue("Hi", "A"), "not_a_dialogue"),
        ("preface" + dialogue("Hi", "A"), dialogue("Hi", "A"), "not_a_dialogue"),
        ("\n\nAssistant: A", "\n\nAssistant: B", "not_a_dialogue"),
        (dialogue("Hi", "A") + "\n\nAssistant: B", dialogue("Hi", "A") + "\n\nAssistant: C", "not_a_dialogue"),
    ],
)
def test_dialogues_that_are_no_comparison_are_refused_by_name(chosen: str, rejected: str, expected: str) -> None:
    assert reason(DIALOGUES, chosen=chosen, rejected=rejected) == expected


def test_a_format_fits_a_row_of_the_right_looks_and_marks() -> None:
    assert PROMPT.fits(TEXT | {"id": 1}) and not PROMPT.fits(TEXT | {"chosen": 3}) and not PROMPT.fits({"prompt": "a"})
    assert DIALOGUES.fits({"chosen": dialogue("Hi"), "rejected": ""}) and not DIALOGUES.fits(TEXT)


WORDS = st.sampled_from(["role", "content", "from", "value", "response", "overall_score", "messages", "user", "gpt"])
VALUES = st.recursive(
    st.none() | st.text(max_size=3) | st.floats() | st.just("\n\nHuman: a\n\nAssistant: b") | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@settings(max_examples=40)
@given(st.data())
def test_any_row_is_pairs_or_a_refusal(form: Format, data: st.DataObject) -> None:
    keys = [name for column in form.columns.values() for name in column.names[:1]]
    row = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(keys, VALUES)))
    found = form.read(row)
    assert found.reason.isidentifier() if isinstance(found, Refusal) else found[0].prompt[-1]["role"] == "user"


@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "id"]), st.from_type(object) | st.text()))
def test_a_text_row_is_kept_or_refused(row: dict[str, Any]) -> None:
    found = PROMPT.read(row)
    assert isinstance(found, Refusal) or found[0].chosen == row["chosen"]
