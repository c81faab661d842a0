import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import engine.files
from engine.config import Strict
from engine.models.scoring import PairScores
from engine.preferences.score_store import SCORES, ScoreStore, write_shard
from engine.preferences.scores import scored_rows
from engine.promotion.service import Service
from engine.stage import Stage
from engine.store import Store
from engine.verification import Verdict, verify_all, verify_scores


def verdicts(toy: Any, *, keep: bool = False, only: str = "") -> dict[str, Verdict]:
    stages = [stage for stage in toy.stages if only in ("", stage.name)]
    return {each.name: each for each in verify_all(stages, toy.root / "data", toy.root / "artifacts", keep=keep)}


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_every_artifact_of_both_stores_under_every_key_is_read(toy, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)  # all of it is remembered
    toy.run()
    toy.run("sft.steps=6")
    read: list[Path] = []
    monkeypatch.setattr("engine.files.file_digest", lambda path: (read.append(path), "0" * 64)[1])
    found = verdicts(toy, keep=True)
    assert sorted(name.partition("/")[0] for name in found) == [
        *("download", "evaluate", "sft", "sft", "tokenize", "train", "train")
    ]
    assert len(read) == sum(len(list(each.path.rglob("*.txt"))) for each in found.values())
    assert all(each.problems for each in found.values())


def test_what_is_sound_is_said_to_be_with_its_size_and_stays(toy):
    artifact = toy.run().artifacts["train"]
    found = verdicts(toy)
    assert not any(each.problems for each in found.values())
    assert found[f"train/{artifact.key}"].size_bytes == artifact.size_bytes > 0
    assert set(toy.plan().values()) == {"reuse"}


def test_a_flip_that_leaves_no_trace_goes_to_quarantine_and_the_next_run_makes_it_anew(toy, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)
    artifact = toy.run().artifacts["train"]
    flipped, mark = artifact.path / "out.txt", engine.files.mark
    known = mark(flipped)
    damage(flipped)
    monkeypatch.setattr("engine.files.mark", lambda path: known if path == flipped else mark(path))
    assert toy.plan()["train"] == "reuse"
    verdict = verdicts(toy)[f"train/{artifact.key}"]
    assert verdict.problems == ["out.txt does not have the content it was sealed with"]
    assert (verdict.moved / "out.txt").is_file()
    assert not artifact.path.exists()
    assert toy.plan()["train"] == "run"


def test_with_keep_it_lies_where_it_was_and_every_run_knows_of_it_now(toy):
    artifact = toy.run().artifacts["train"]
    damage(artifact.path / "out.txt")
    verdict = verdicts(toy, keep=True)[f"train/{artifact.key}"]
    assert (verdict.moved, artifact.path.is_dir()) == (None, True)
    assert toy.plan()["train"] == "run"


@pytest.mark.parametrize("harm", ["extra", "no manifest", "manifest", "swapped"])
def test_what_is_not_as_it_was_sealed_is_found(toy, harm):
    artifact = toy.run().artifacts["train"]
    if harm == "extra":
        (artifact.path / "logs" / "more.txt").write_text("x")
    elif harm == "no manifest":
        (artifact.path / "manifest.json").unlink()
    elif harm == "manifest":
        damage(artifact.path / "manifest.json")
    else:
        shutil.rmtree(artifact.path)
        shutil.copytree(toy.root / "artifacts" / "sft" / toy.run(until="sft").artifacts["sft"].key, artifact.path)
    verdict = verdicts(toy)[f"train/{artifact.key}"]
    assert len(verdict.problems) == 1
    assert verdict.moved.is_dir()
    assert verdicts(toy, only="train") == {}


def test_a_manifest_that_was_kept_of_a_removed_artifact_is_no_error(toy):
    artifact = toy.run().artifacts["tokenize"]
    kept = toy.root / "artifacts" / ".pruned" / "tokenize" / artifact.key
    kept.mkdir(parents=True)
    shutil.move(artifact.path / "manifest.json", kept)
    shutil.rmtree(artifact.path)
    assert not any(each.problems for each in verdicts(toy).values())


def test_a_broken_one_that_is_being_made_anew_is_left_alone(toy):
    artifact = toy.run().artifacts["train"]
    damage(artifact.path / "out.txt")
    found: dict[str, Verdict] = {}
    with Store(toy.root / "artifacts").locked("train", artifact.key, 0):
        thread = threading.Thread(target=lambda: found.update(verdicts(toy, only="train")))
        thread.start()
        thread.join()
    (verdict,) = found.values()
    assert verdict.note.startswith(f"left where it is: being made anew by process {os.getpid()} of ")
    assert artifact.path.is_dir()


def test_a_store_that_may_only_be_read_is_told_of_what_is_broken_all_the_same(toy, monkeypatch):
    artifact = toy.run().artifacts["train"]
    damage(artifact.path / "out.txt")

    def refused(self: Path, *given: Any, **named: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    verdict = verdicts(toy)[f"train/{artifact.key}"]
    assert verdict.problems
    assert verdict.note == "left where it is: [Errno 30] Read-only file system"
    assert verdict.as_dict()["moved"] is None


def test_a_store_that_cannot_be_listed_is_a_verdict_of_its_own(toy, monkeypatch):
    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    toy.run(until="download")
    monkeypatch.setattr(Path, "iterdir", refused)
    assert "Permission denied" in verdicts(toy, only="download")["download"].problems[0]


def test_where_nothing_was_made_there_is_nothing_to_say(toy):
    assert verdicts(toy) == {}


def test_scores_are_read_too_and_a_broken_shard_is_moved_unless_it_is_to_be_kept(tmp_path):
    scorer = ScoreStore(tmp_path / SCORES).of({"policy": "abc"})
    rows = scored_rows([b"k" * 16], [PairScores([-1.0], [-2.0], -1.0, -2.0)])
    (tmp_path / "work").mkdir()
    scorer.publish(write_shard(tmp_path / "work", rows))
    [sound] = verify_scores(tmp_path)
    assert (sound.name, sound.problems) == (f"scores/{scorer.folder.name}", [])
    [shard] = scorer.folder.glob("*.parquet")
    damage(shard)
    [kept] = verify_scores(tmp_path, keep=True)
    assert (len(kept.problems), kept.moved, shard.exists()) == (1, None, True)
    [moved] = verify_scores(tmp_path)
    assert moved.moved == tmp_path / "scores" / ".quarantine"
    assert not shard.exists()
    [after] = verify_scores(tmp_path)
    assert not after.problems


class TestWhatIsInService:
    @pytest.fixture
    def in_service(self, toy) -> Service:
        """A version on the toys' policy, in service."""
        toy.stages.append(
            Stage("promote", Strict, 1, lambda ctx: None, ("train",), skip=lambda config, configs: "by hand")
        )
        made, store = toy.run().artifacts, Store(toy.root / "artifacts")
        work = store.work("promote", "a" * 16)
        told = {"candidate": "c", "against": None, "stages": {stage: made[stage].key for stage in ("tokenize", "sft")}}
        (work / "handed_down.json").write_text(json.dumps(told))
        store.seal("promote", "a" * 16, work, {"payload": {"inputs": {}}, "metrics": {}, "seconds": 0.0})
        Service(store.root, "toy").put("a" * 16)
        return Service(store.root, "toy")

    def test_has_a_line_of_its_own_where_its_stage_is_asked_for(self, toy, in_service):
        found = verdicts(toy)
        assert found[f"promoted/toy/{'a' * 16}"].problems == []
        assert f"promote/{'a' * 16}" in found
        assert not [name for name in verdicts(toy, only="train") if name.startswith("promoted")]
        shutil.rmtree(in_service.folder)
        assert not [name for name in verdicts(toy) if name.startswith("promoted")]

    @pytest.mark.parametrize("stage", ["promote", "sft", "tokenize"])
    def test_is_said_to_be_broken_where_it_or_what_it_needs_is_and_how_to_go_back(self, toy, in_service, stage):
        folder = next((toy.root / "artifacts" / stage).iterdir())
        damage(next(path for path in folder.iterdir() if path.name != "manifest.json"))
        for keep in (True, False):
            verdict = verdicts(toy, keep=keep)[f"promoted/toy/{'a' * 16}"]
            assert any(problem.startswith(f"{stage}/{folder.name}") for problem in verdict.problems)
            assert "make it again" in verdict.note, "nothing was there before"
            assert "dpo rollback" not in verdict.note

    def test_is_looked_at_in_every_service(self, toy, in_service):
        Service(toy.root / "artifacts", "other").put("a" * 16)
        found = verdicts(toy)
        assert {f"promoted/{name}/{'a' * 16}" for name in ("toy", "other")} <= found.keys()

    def test_that_cannot_be_told_or_found_by_its_link_is_broken_too(self, toy, in_service):
        (in_service.folder / "current").unlink()
        assert verdicts(toy)[f"promoted/toy/{'a' * 16}"].note == "the next run mends that"
        in_service.repair()
        (in_service.folder / "state.json").write_text("{")
        assert "cannot be told which model is in service" in verdicts(toy)["promoted/toy"].problems[0]
