import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.nights import (
    MOST_NAMED,
    RECENT,
    TOLERANCE,
    Missed,
    Nights,
    Rhythm,
    began_at,
    earlier,
    every_hours,
    late_by,
    missed_between,
    nights_before,
)
from engine.runs import RunRecord

FIRST = datetime.fromisoformat("2026-03-20T02:00:00+01:00")


def night(at: datetime, state: str = "completed", hours: Any = 24, **changes: Any) -> RunRecord:
    fields = {"id": f"{at:%Y%m%d-%H%M%S}-mine", "profile": "mine", "selection": {}, "error": ""} | changes
    return RunRecord(
        folder=Path("nowhere"),
        overrides=[],
        config={"runtime": {"every_hours": hours}},
        changed={},
        environment={},
        started_at=at.isoformat(),
        began=at.timestamp(),
        state=state,
        **{"seconds": 600.0} | fields,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def kept(root: Path, *nights: RunRecord) -> list[RunRecord]:
    """The records, as they are read back from below the root."""
    for each in nights:
        each.folder = root / "runs" / each.id
        each.folder.mkdir(parents=True)
        saved = {name: value for name, value in vars(each).items() if name not in ("folder", "decisions", "_clock")}
        (each.folder / "run.json").write_text(json.dumps(saved | {"stages": []}))
    return [RunRecord.load(each.folder) for each in nights]


def days(count: float) -> datetime:
    return FIRST + timedelta(days=count)


def between(before: RunRecord, after: RunRecord, hours: float = 24.0) -> list[Missed]:
    """What was missed between two, of which the first began at its usual time."""
    return missed_between(before, after, Rhythm.of([before], hours))


def test_the_first_night_has_none_before_it(root):
    (first,) = kept(root, night(FIRST))
    found = nights_before(first, root)
    assert (found.last, found.completed, found.spoiled, found.missed) == (None, None, [], [])


def test_a_night_after_a_good_one_misses_nothing(root):
    before, tonight = kept(root, night(days(0)), night(days(1)))
    found = nights_before(tonight, root)
    assert found.last.id == found.completed.id == before.id
    assert not found.missed and not found.spoiled


def test_nights_without_any_run_are_named_by_their_time(root):
    *_, tonight = kept(root, night(days(0)), night(days(3)))
    assert [each.at for each in nights_before(tonight, root).missed] == [days(2), days(1)]


def test_nights_that_ended_badly_are_told_back_to_the_last_completed_one(root):
    good, crashed, failed, tonight = kept(
        root, night(days(0)), night(days(1), "crashed"), night(days(3), "failed"), night(days(4))
    )
    found = nights_before(tonight, root)
    assert found.last.id == failed.id and found.completed.id == good.id
    assert [each.id for each in found.spoiled] == [failed.id, crashed.id]
    assert [each.at for each in found.missed] == [days(2)]


def test_what_lies_before_the_last_completed_night_was_told_on_its_page(root):
    *_, tonight = kept(root, night(days(0), "failed"), night(days(5)), night(days(6)))
    found = nights_before(tonight, root)
    assert not found.missed and not found.spoiled


def test_a_night_that_never_completed_says_so(root):
    *_, tonight = kept(root, night(days(0), "failed"), night(days(1), "cancelled"), night(days(2)))
    found = nights_before(tonight, root)
    assert found.completed is None and len(found.spoiled) == 2


def test_other_profiles_parts_and_runs_by_hand_under_other_settings_are_no_nights(root):
    *_, tonight = kept(
        root,
        night(days(0)),
        night(days(0.9), id="20260320-230000-other", profile="other"),
        night(days(1.0), selection={"only": "evaluate"}),
        night(days(1.1), selection={"until": "train"}),
        night(days(1.2), hours=0),
        night(days(1.3), selection={"force": True, "only": None}),
        night(days(2), hours=24),
        night(days(9)),
    )
    before = [each.id for each in earlier(kept_as(root, days(2)), root)]
    assert before == [night(days(1.3)).id, night(days(0)).id]
    assert next(earlier(tonight, root)).id == night(days(2)).id


def kept_as(root: Path, at: datetime) -> RunRecord:
    return RunRecord.load(root / "runs" / night(at).id)


def test_a_run_that_comes_irregularly_has_no_nights_and_awaits_none(root):
    *_, tonight = kept(root, night(days(0), "failed", hours=0), night(days(9), hours=0))
    found = nights_before(tonight, root)
    assert found.last is None and not found.missed
    assert len(list(earlier(tonight, root))) == 1


def test_a_night_during_which_the_run_before_was_still_going_is_told_as_such(root):
    long, tonight = kept(root, night(days(0), seconds=30 * 3600.0), night(days(3)))
    found = nights_before(tonight, root)
    assert [(each.at, each.under_way) for each in found.missed] == [(days(2), ""), (days(1), long.id)]


@given(early=st.floats(-TOLERANCE, TOLERANCE), late=st.floats(-TOLERANCE, TOLERANCE), skipped=st.integers(0, 40))
def test_within_the_tolerance_as_many_nights_are_missed_as_were_skipped(early, late, skipped):
    before, after = night(days(early / 2.01)), night(days(skipped + 1 + late / 2.01))
    assert len(missed_between(before, after, Rhythm(86_400.0, FIRST.timestamp()))) == skipped


@given(offsets=st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=RECENT + 1), odd=st.floats(0, 1))
def test_the_usual_time_is_within_those_of_most_runs_whatever_one_of_them_did(offsets, odd):
    runs = [night(days(day + offset)) for day, offset in enumerate(offsets)]
    usual = Rhythm.of([night(days(-1 + odd)), *runs], 24)
    assert abs(Rhythm(86_400.0, FIRST.timestamp()).off(usual.phase)) <= 0.1 * 86_400 + 1


def test_a_whole_run_by_hand_in_the_evening_hides_no_missed_night(root):
    monday = kept(root, *(night(days(day)) for day in range(4)))[-1]
    by_hand, tonight = kept(root, night(days(3.75)), night(days(5)))
    found = nights_before(tonight, root)
    assert found.last.id == by_hand.id
    assert [each.at for each in found.missed] == [days(4)]
    assert found.late == 0
    assert nights_before(by_hand, root) == Nights(monday, monday), "it is no late night: that one had its run"


def test_a_night_that_begins_six_hours_late_is_late_and_none_is_missed(root):
    *_, tonight = kept(root, *(night(days(day)) for day in range(3)), night(days(3) + timedelta(hours=6, minutes=1)))
    found = nights_before(tonight, root)
    assert not found.missed
    assert found.late == pytest.approx(6 * 3600 + 60)
    (after,) = kept(root, night(days(4)))
    assert nights_before(after, root).missed == [] and nights_before(after, root).late == 0


@pytest.mark.parametrize(("hours", "late"), [(-2.9, 0), (0.1, 0), (2.9, 0), (3.1, 3.1), (20.9, 20.9)])
def test_a_night_is_late_from_an_eighth_of_the_interval_on(hours, late):
    past = [night(days(day)) for day in (2, 1, 0)]
    tonight = night(days(3) + timedelta(hours=hours))
    assert late_by(tonight, past, Rhythm.of([*past, tonight], 24)) == pytest.approx(late * 3600)


def test_nothing_is_called_late_before_there_is_a_usual_time(root):
    *_, tonight = kept(root, night(days(0)), night(days(1.3)))
    assert nights_before(tonight, root).late == 0
    *_, other = kept(root, night(days(2.6)), night(days(3.9)))
    assert nights_before(other, root).late == 0


def test_a_machine_that_was_off_for_a_week_and_catches_up_in_the_afternoon_missed_the_nights_and_is_late(root):
    *_, tonight = kept(root, *(night(days(day)) for day in range(5)), night(days(11.5)))
    found = nights_before(tonight, root)
    assert [each.at for each in found.missed] == [days(day) for day in (10, 9, 8, 7, 6, 5)]
    assert found.late == pytest.approx(12 * 3600)
    (next_night,) = kept(root, night(days(12)))
    assert nights_before(next_night, root).missed == []


def test_a_schedule_that_moves_to_another_hour_misses_nothing():
    for hour in range(-20, 21):
        moved = [night(days(day)) for day in range(5)]
        moved += [night(days(day) + timedelta(hours=hour, minutes=2 * (day % 2) - 1)) for day in range(5, 16)]
        assert not any(all_missed(moved)), hour


def all_missed(nights: list[RunRecord]) -> list[list[Missed]]:
    """What was missed before each night but the first, by the runs that its own page knows."""
    found = []
    for at in range(1, len(nights)):
        past = nights[max(0, at - RECENT) : at][::-1]
        found.append(missed_between(past[0], nights[at], Rhythm.of([*past, nights[at]], 24.0)))
    return found


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_daylight_saving_invents_no_missed_or_late_night_in_a_year_and_hides_none(zone):
    at = [datetime(2026, 1, 1, 2, tzinfo=ZoneInfo(zone)) + timedelta(days=day) for day in range(366)]
    nights = [night(each) for each in at]
    assert not any(all_missed(nights))
    for last in range(RECENT, 366):
        past = nights[last - RECENT : last][::-1]
        assert late_by(nights[last], past, Rhythm.of([*past, nights[last]], 24.0)) == 0
    for missing in range(RECENT, 365):
        told = all_missed(nights[missing - RECENT : missing] + nights[missing + 1 : missing + 2])
        assert [len(each) for each in told] == [0] * (RECENT - 1) + [1]


@pytest.mark.parametrize(("hours", "missed"), [(20.9, 0), (44.9, 0), (45.1, 1), (68.9, 1), (69.1, 2)])
def test_a_run_may_begin_an_eighth_of_the_interval_early_and_no_more(hours, missed):
    assert len(between(night(FIRST), night(FIRST + timedelta(hours=hours)))) == missed


@pytest.mark.parametrize("back", [0.0, -1.0, -900.0])
def test_a_clock_that_was_set_back_invents_no_missed_night_and_no_late_one(back, root):
    past = [night(days(day)) for day in (0, -1, -2)]
    jumped = night(days(back))
    rhythm = Rhythm.of([*past, jumped], 24)
    assert missed_between(past[0], jumped, rhythm) == []
    assert late_by(jumped, past, rhythm) == 0


def test_a_clock_that_was_ahead_for_one_night_leaves_no_trace_in_those_after_it(root):
    ahead = night(days(900.4), id="20260323-020000-mine")
    *_, tonight, after = kept(root, *(night(days(day)) for day in range(3)), ahead, night(days(4)), night(days(5)))
    for each in (tonight, after):
        assert nights_before(each, root).missed == [] and nights_before(each, root).late == 0


@pytest.mark.parametrize("hours", [0.25, 1, 12, 24, 168])
def test_a_schedule_by_any_interval_is_understood(hours):
    after = night(FIRST + timedelta(hours=3 * hours))
    found = between(night(FIRST), after, float(hours))
    assert [each.at for each in found] == [FIRST + timedelta(hours=back * hours) for back in (2, 1)]


def test_a_clock_that_is_wrong_by_a_century_names_no_million_nights():
    assert len(between(night(FIRST), night(FIRST.replace(year=2126)), 0.01)) == MOST_NAMED


@pytest.mark.parametrize("began", [math.nan, math.inf, -math.inf, 1e300])
def test_a_record_whose_time_makes_no_sense_misses_nothing_and_has_a_time(began):
    odd, past = night(FIRST), [night(days(-1)), night(days(-2))]
    odd.began = began
    for recent in (past, [odd, *past]):
        rhythm = Rhythm.of([*recent, odd], 24)
        assert len(missed_between(recent[0], odd, rhythm)) in (0, MOST_NAMED)
        assert math.isfinite(late_by(odd, recent, rhythm)) and math.isfinite(late_by(night(FIRST), recent, rhythm))
    assert began_at(odd).tzinfo is not None


def test_the_nights_of_a_profile_are_its_own_by_whatever_name_it_was_called(root, toy, monkeypatch):
    path = toy.root / "mine.toml"
    path.write_text("")
    monkeypatch.chdir(toy.root)
    names = ("mine.toml", str(path), f"{toy.root}/configs/../mine.toml", "configs/toy.toml", "mine.toml")
    *_, other, tonight = kept(root, *(night(days(day), profile=name) for day, name in enumerate(names)))
    monkeypatch.chdir("/")
    tonight = RunRecord.load(tonight.folder)
    assert [each.profile for each in earlier(tonight, root)] == [str(names[at]) for at in (2, 1, 0)]
    assert list(earlier(other, root)) == []


def test_a_time_is_told_in_the_zone_of_its_run_and_in_utc_where_none_is_known():
    assert began_at(night(FIRST)).isoformat() == "2026-03-20T02:00:00+01:00"
    odd = night(FIRST)
    odd.started_at = "yesterday"
    assert began_at(odd).isoformat() == "2026-03-20T01:00:00+00:00"


@pytest.mark.parametrize("said", [None, "24", True, -1, 0, math.nan, math.inf, [24]])
def test_an_interval_that_is_none_means_that_no_run_is_awaited(said):
    assert every_hours(night(FIRST, hours=said)) == 0.0


def test_a_record_of_an_earlier_version_awaits_no_run():
    old = night(FIRST)
    for config in ({}, {"runtime": {}}, {"runtime": 3}):
        old.config = config
        assert every_hours(old) == 0.0
    assert every_hours(night(FIRST, hours=24)) == 24.0
