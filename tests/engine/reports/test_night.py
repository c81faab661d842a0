import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from engine.reports.night import night_sections
from engine.runs import RunRecord

FIRST = datetime.fromisoformat("2026-11-20T02:00:00+00:00")

Night = Callable[..., RunRecord]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Makes the record of a night so many days after the first."""

    def make(day: float, state: str = "completed", error: str = "", hours: float = 24) -> RunRecord:
        at = FIRST + timedelta(days=day)
        id = f"{at:%Y%m%d-%H%M%S}-mine"
        config = {"runtime": {"every_hours": hours}}
        told = {"id": id, "profile": "mine", "overrides": [], "selection": {}, "config": config, "changed": {}}
        told |= {"environment": {}, "started_at": at.isoformat(), "began": at.timestamp(), "state": state}
        folder = tmp_path / "runs" / id
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(told | {"error": error, "seconds": 60.0, "stages": []}))
        return RunRecord.load(folder)

    return make


def page(record: RunRecord, root: Path) -> str:
    return "\n\n".join(night_sections(record, root))


def test_a_missed_and_a_failed_night_are_on_the_next_page(night: Night, tmp_path: Path) -> None:
    night(0)
    night(2, state="failed", error="DataError: `it` | broke\nfix: mend it")
    told = page(night(3), tmp_path)
    assert told.startswith("## The nights before\n\nA run is awaited every 24 h.")
    assert "`20261122-020000-mine`, began 2026-11-22 02:00 +0000 and failed." in told
    assert "The last that completed is `20261120-020000-mine`" in told and "3.0 days before this one" in told
    assert "**A night was missed.**" in told
    assert "| 2026-11-21 02:00 +0000 | no run began | machine, schedule or worker was off, or the conf" in told
    assert r"| failed | `20261122-020000-mine` DataError: \`it\` \| broke |" in told
    assert "mend it" not in told


def test_a_night_like_any_other_says_that_none_was_missed(night: Night, tmp_path: Path) -> None:
    assert page(night(0), tmp_path) == "## The nights before\n\nA run is awaited every 24 h. This is the first."
    assert "began 2026-11-20 02:00 +0000 and completed. None was missed." in page(night(1), tmp_path)


def test_a_late_night_says_by_how_much_and_that_none_was_missed(night: Night, tmp_path: Path) -> None:
    for day in range(3):
        night(day)
    told = page(night(3.25), tmp_path)
    assert told.endswith("None was missed. **This one began 6 h 00 min later than usual.**")


def test_a_night_that_the_run_before_slept_through_names_that_run(night: Night, tmp_path: Path) -> None:
    before = night(0)
    record = json.loads((before.folder / "run.json").read_text()) | {"seconds": 90_000.0}
    (before.folder / "run.json").write_text(json.dumps(record))
    assert "| no run began | `20261120-020000-mine` was still under way |" in page(night(2), tmp_path)


def test_many_bad_nights_are_cut_and_counted(night: Night, tmp_path: Path) -> None:
    for day in range(8):
        night(day, state="crashed")
    told = page(night(15), tmp_path)
    assert "None has completed yet." in told and "**7 nights were missed.**" in told
    assert told.count("\n| 2026") == 10 and "And 5 before these." in told


def test_a_run_that_is_not_awaited_has_no_nights(night: Night, tmp_path: Path) -> None:
    night(0, hours=0)
    assert night_sections(night(1, hours=0), tmp_path) == []
