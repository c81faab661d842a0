import json
import shutil
from pathlib import Path

import pytest

from engine.reports.recorded import began, came_to, recorded
from engine.runs import RunRecord
from engine.stage import Decision
from engine.store import Artifact, Store


def sealed(root: Path) -> Artifact:
    store = Store(root)
    work = store.work("tokenize", "key", fresh=True)
    (work / "a").write_text("a")
    return store.seal("tokenize", "key", work, {"payload": {}, "metrics": {}})


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    made = sealed(tmp_path)
    folder = tmp_path / "runs" / "20261123-020000-mine"
    folder.mkdir(parents=True)
    told = {"id": folder.name, "profile": "mine", "overrides": [], "selection": {}, "config": {}, "changed": {}}
    told |= {"environment": {}, "started_at": "2026-11-23T02:00:00+0800", "began": 1795370400.0}
    stages = [Decision("download", "skip", "given"), Decision("tokenize", "run", "new", made.key, made.path)]
    (folder / "run.json").write_text(json.dumps(told | {"stages": [each.as_dict() for each in stages]}))
    return RunRecord.load(folder)


def test_what_a_run_made_is_found(record: RunRecord) -> None:
    made = recorded(record, "tokenize")
    assert made is not None
    assert not made.pruned
    assert came_to(record, "tokenize")


def test_of_what_was_removed_the_manifest_is_found(record: RunRecord, tmp_path: Path) -> None:
    pruned = tmp_path / ".pruned" / "tokenize" / "key"
    pruned.parent.mkdir(parents=True)
    (tmp_path / "tokenize" / "key").rename(pruned)
    (pruned / "a").unlink()
    made = recorded(record, "tokenize")
    assert made is not None
    assert made.pruned
    shutil.rmtree(pruned)
    assert recorded(record, "tokenize") is None
    assert came_to(record, "tokenize")


def test_a_manifest_that_was_damaged_is_like_none(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "tokenize" / "key" / "manifest.json").write_text("{")
    assert recorded(record, "tokenize") is None


@pytest.mark.parametrize("stage", ["download", "train"])
def test_a_stage_that_was_skipped_or_not_reached_has_nothing(record: RunRecord, stage: str) -> None:
    assert recorded(record, stage) is None
    assert not came_to(record, stage)


def test_when_it_began_is_told_in_its_own_time_zone(record: RunRecord) -> None:
    assert began(record) == "2026-11-23 02:00 +0800"
