import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.preferences.schema import TOKENS, writer
from engine.reports.night import night_sections
from engine.runs import RunRecord
from engine.stage import Decision
from engine.store import Artifact, Store

FIRST = datetime.fromisoformat("2026-11-20T02:00:00+00:00")
TALLY = {"sources": {"a.jsonl": 900, "b|c": 100}, "other_sources": 0, "response_lengths": {"1–4": 1000, "5–8": 1000}}

Night = Callable[..., RunRecord]


def tokens(root: Path, ids: list[str], metrics: dict[str, Any] = TALLY) -> Artifact:
    store, key = Store(root), "-".join(ids)
    work = store.work("tokenize", key, fresh=True)
    with writer(work / "pairs.parquet", TOKENS) as out:
        out.write_table(pa.Table.from_pylist([{"pair_id": each} for each in ids], schema=TOKENS))
    return store.seal("tokenize", key, work, {"payload": {}, "metrics": {"pairs": len(ids)} | metrics})


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Makes the record of a night so many days after the first, which used an artifact of tokenize."""

    def make(day: float, made: Artifact | None = None, state: str = "completed", error: str = "", hours: float = 24):
        at = FIRST + timedelta(days=day)
        id = f"{at:%Y%m%d-%H%M%S}-mine"
        config = {"runtime": {"every_hours": hours}}
        stages = [Decision("tokenize", "run", "new", made.key, made.path).as_dict()] if made else []
        told = {"id": id, "profile": "mine", "overrides": [], "selection": {}, "config": config, "changed": {}}
        told |= {"environment": {}, "started_at": at.isoformat(), "began": at.timestamp(), "state": state}
        folder = tmp_path / "runs" / id
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(told | {"error": error, "seconds": 60.0, "stages": stages}))
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


def test_a_run_that_is_not_awaited_and_has_none_before_it_tells_nothing(night: Night, tmp_path: Path) -> None:
    assert night_sections(night(0, tokens(tmp_path, ["x"]), hours=0), tmp_path) == []


def test_a_run_by_hand_tells_of_its_data_only_where_they_moved(night: Night, tmp_path: Path) -> None:
    one, two = tokens(tmp_path, ["x"]), tokens(tmp_path, ["x", "y"])
    night(0, one, hours=0)
    assert night_sections(night(1, one, hours=0), tmp_path) == []
    assert page(night(2, two, hours=0), tmp_path).startswith("## The data since the last run\n\nNew pairs: 1. Gone: 0.")


def test_data_that_moved_are_shown_with_their_shares(night: Night, tmp_path: Path) -> None:
    moved = TALLY | {"sources": {"a.jsonl": 500, "b|c": 500}}
    night(0, tokens(tmp_path, ["x", "y"]))
    told = page(night(1, tokens(tmp_path, ["y", "z", "w"], moved)), tmp_path)
    assert "## The data since last night\n\nNew pairs: 2. Gone: 1. Pairs then and now: 2 and 3." in told
    assert "| by source | 40.0% | **moved** |" in told
    assert "| by response length | 0.0% | as it was |" in told
    assert r"| b\|c | 10.0% | 50.0% | +40.0 points |" in told
    assert "| response length | then" not in told


def test_a_new_source_is_named_and_what_its_name_holds_is_text(night: Night, tmp_path: Path) -> None:
    grown = TALLY | {"sources": TALLY["sources"] | {"n|2*.jsonl": 1500}}
    night(0, tokens(tmp_path, ["x"]))
    told = page(night(1, tokens(tmp_path, ["x", "y"], grown)), tmp_path)
    assert r"| by source | 60.0% | new source n\|2\*.jsonl, 1,500 pairs |" in told
    assert "**moved**" not in told


def test_last_night_is_the_last_completed_one_whose_manifest_is_there(night: Night, tmp_path: Path) -> None:
    moved = TALLY | {"sources": {"a.jsonl": 1000}}
    old, lost = tokens(tmp_path, ["x", "y"]), tokens(tmp_path, ["q"])
    night(0, old)
    night(1, lost)
    night(2, tokens(tmp_path, ["y"]), state="failed")
    night(3)
    shutil.rmtree(lost.path)
    pruned = tmp_path / ".pruned" / "tokenize" / old.key
    pruned.parent.mkdir(parents=True)
    old.path.rename(pruned)
    (pruned / "pairs.parquet").unlink()
    told = page(night(4, tokens(tmp_path, ["z"], moved)), tmp_path)
    assert "new and how many are gone is not known" in told and "then and now: 2 and 1." in told
    assert "| by source | 10.0% | **moved** |" in told


def test_an_artifact_from_before_the_tally_says_that_shares_are_not_known(night: Night, tmp_path: Path) -> None:
    night(0, tokens(tmp_path, ["x"], {}))
    told = page(night(1, tokens(tmp_path, ["y"])), tmp_path)
    assert "New pairs: 1. Gone: 1." in told and "Shares by source and length are not known" in told


def test_a_manifest_that_was_damaged_is_passed_over(night: Night, tmp_path: Path) -> None:
    broken = tokens(tmp_path, ["x"])
    night(0, broken)
    (broken.path / "manifest.json").write_text("{")
    assert "The data since" not in page(night(1, tokens(tmp_path, ["y"])), tmp_path)
    assert "The data since" not in page(night(2, broken), tmp_path)
