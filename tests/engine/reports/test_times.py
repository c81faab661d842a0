from dataclasses import replace
from pathlib import Path

import pytest

from engine.reports.times import Unfinished, unfinished, where_the_time_went
from engine.runs import RunRecord
from engine.stage import Decision

MADE = [
    Decision("download", "reuse", "", "a", None, 50.0),
    Decision("sft", "resume", "", "b", None, 30.0),
    Decision("train", "run", "", "c", None, 65.0),
    Decision("promote", "skip", ""),
]
HOURS = 8 * 3600.0


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    facts = {"overrides": [], "selection": {}, "config": {}, "changed": {}, "environment": {}, "began": 0.0}
    folder = tmp_path / "runs" / "1"
    return RunRecord(id="1", folder=folder, profile="demo", started_at="", state="completed", seconds=130.0, **facts)


def test_of_a_run_that_completed_it_is_told_what_was_made_and_what_reuse_saved(record):
    assert where_the_time_went(replace(record, decisions=MADE)) == (
        "**train**: 1 min 05 s of 2 min 10 s (50.0%). Next came sft with 30.0 s. "
        "1 of 4 stages were reused, which saved 50.0 s."
    )
    everything = replace(record, decisions=MADE[:1])
    assert where_the_time_went(everything) == "Every stage was reused, which saved 50.0 s."
    assert where_the_time_went(record) == "No stage was finished."
    assert unfinished(everything) is None


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_hours_in_a_stage_that_was_not_finished_are_told_before_the_seconds_of_those_that_were(record, state):
    made = [Decision("download", "run", "", "a", None, 2.0), Decision("tokenize", "run", "", "b", None, 6.0)]
    broken = replace(record, state=state, seconds=HOURS, decisions=made)
    assert unfinished(broken) == Unfinished("subsample", HOURS - 8)
    told = where_the_time_went(broken)
    assert told.startswith("**subsample**, which it did not finish: 7 h 59 min of 8 h 00 min.")
    assert "Of those it finished, tokenize with 6.0 s took the longest." in told
    assert "%" not in told


def test_of_a_run_that_ended_without_a_word_no_share_is_told(record):
    crashed = replace(record, state="crashed", seconds=None, decisions=MADE[:3])
    told = where_the_time_went(crashed)
    assert told.startswith("It ended in **evaluate**; how long that took is not known.")
    assert "%" not in told and "train with 1 min 05 s" in told


def test_of_a_run_under_way_the_stage_that_it_is_at_is_told(record):
    assert where_the_time_went(replace(record, state="running", seconds=None)).startswith("It is at **download**")


def test_only_stages_that_the_run_was_about_are_said_to_be_unfinished(record):
    only = replace(record, state="failed", selection={"only": "train", "since": None, "until": None, "force": False})
    assert unfinished(only) == Unfinished("train", 130.0)
    until = replace(record, state="cancelled", selection={"until": "tokenize"}, decisions=MADE[:1])
    assert unfinished(until).stage == "tokenize"
    done = [Decision(name, "run", "", "k", None, 1.0) for name in ("download", "tokenize")]
    assert unfinished(replace(until, decisions=done)) is None
    assert unfinished(replace(until, selection={"of another": "version"})).stage == "tokenize"


def test_a_run_whose_stages_are_all_done_has_none_that_it_did_not_finish(record):
    assert (
        unfinished(replace(record, state="failed", decisions=[Decision("promote", "run", "", "k", None, 1.0)])) is None
    )
