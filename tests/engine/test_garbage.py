import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import engine.garbage
from engine.config import Strict
from engine.garbage import Waste, find_waste, remove
from engine.preferences.score_store import SCORES, ScoreStore
from engine.promotion.service import Service
from engine.runs import RunRecord
from engine.selection import Selection
from engine.stage import Stage
from engine.store import Store

DAY = 86_400.0


def found(toy: Any, days: float = 30, keep_runs: int | None = None) -> list[Waste]:
    root = toy.root
    return find_waste(toy.stages, root / "data", root / "artifacts", older_than_days=days, keep_runs=keep_runs)


def whys(toy: Any, **given: Any) -> dict[str, str]:
    return {each.path.relative_to(toy.root).as_posix(): each.why for each in found(toy, **given)}


def sweep(toy: Any, **given: Any) -> list[str]:
    return [removed(toy, each) for each in found(toy, **given)]


def removed(toy: Any, waste: Waste) -> str:
    return remove(waste, toy.root / "data", toy.root / "artifacts")


def recorded(toy: Any, *overrides: str, state: str = "completed") -> RunRecord:
    """A run of the toys with a record, as the command makes one."""
    record = RunRecord.start(toy.settings(*overrides), Selection(), toy.root / "artifacts")
    for decision in toy.run(*overrides).decisions.values():
        record.add(decision, None)
    if state != "running":
        record.finish(state)
    return record


def aged(path: Path, days: float) -> Path:
    moment = time.time() - days * DAY
    for each in [*path.rglob("*"), path]:
        os.utime(each, (moment, moment), follow_symlinks=False)
    return path


def work(toy: Any, name: str, days: float = 0.0) -> Path:
    folder = toy.root / "artifacts" / ".work" / name
    folder.mkdir(parents=True)
    (folder / "part").write_text("half")
    return aged(folder, days)


class TestWork:
    def test_a_folder_goes_when_its_key_is_sealed_or_nobody_touched_it_for_long(self, toy):
        key = recorded(toy).decisions[3].key
        work(toy, f"train-{key}")
        work(toy, "train-old", 31)
        work(toy, "train-young", 29)
        assert whys(toy) == {
            f"artifacts/.work/train-{key}": "its key is sealed",
            "artifacts/.work/train-old": "untouched for 31 days",
        }
        assert set(whys(toy, days=10)) >= {"artifacts/.work/train-young"}
        assert sweep(toy) == ["", ""]
        assert [path.name for path in (toy.root / "artifacts" / ".work").iterdir()] == ["train-young"]
        assert list((toy.root / "artifacts" / ".trash").iterdir()) == []

    def test_a_folder_with_one_young_file_deep_inside_stays(self, toy):
        folder = work(toy, "train-old", 31)
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("x")
        os.utime(folder, (1, 1))
        assert whys(toy) == {}

    def test_a_folder_of_the_future_is_not_old(self, toy):
        work(toy, "train-ahead", -400)
        assert whys(toy, days=0) == {}

    def test_a_folder_whose_lock_is_held_is_neither_listed_nor_removed(self, toy):
        work(toy, "train-old", 31)
        store = Store(toy.root / "artifacts")
        (waste,) = found(toy)
        with store.locked("train", "old", 0):
            assert found(toy) == []
            told: list[str] = []
            thread = threading.Thread(target=lambda: told.append(removed(toy, waste)))
            thread.start()
            thread.join()
        assert told[0].startswith(f"in use by process {os.getpid()} of ")
        assert waste.path.is_dir()

    def test_what_a_replaced_artifact_left_goes_and_what_a_crash_left_aside_is_brought_back(self, toy):
        artifact = recorded(toy).artifact("train")
        aside = toy.root / "artifacts" / ".work" / f"train-{artifact.key}-replaced"
        shutil.copytree(artifact.path, aside)
        assert whys(toy) == {f"artifacts/.work/{aside.name}": "was replaced"}
        shutil.rmtree(artifact.path)
        aged(aside, 99)
        assert sweep(toy) == []
        assert (artifact.path / "out.txt").is_file()


class TestOldThings:
    def test_quarantined_things_go_by_the_moment_they_were_put_there(self, toy):
        store = Store(toy.root / "artifacts")
        place = store.quarantine(toy.run().artifacts["train"])
        assert [path for path in whys(toy) if "quarantine" in path] == []
        old = place.with_name(f"train-k-{int((time.time() - 31 * DAY) * 1e9)}")
        place.rename(old)
        assert whys(toy)[f"artifacts/.quarantine/{old.name}"] == "in quarantine for 31 days"
        ahead = old.with_name(f"train-k-{int((time.time() + 99 * DAY) * 1e9)}")
        old.rename(ahead)
        assert [path for path in whys(toy, days=0) if "quarantine" in path] == []

    def test_what_a_kill_left_of_an_atomic_write_goes_once_nobody_can_be_writing_it(self, toy):
        record = recorded(toy)
        for folder in (toy.root / "artifacts", record.folder, toy.root / "data" / ".roots"):
            for name, days in (("..hashes.json.12-34", 2), (".run.json.12-35", 0.5), (".hashes.json", 9)):
                (folder / name).write_text("{}")
                aged(folder / name, days)
        assert set(whys(toy).values()) == {"half written"}
        assert {Path(path).name for path in whys(toy)} == {"..hashes.json.12-34"}
        assert sweep(toy) == ["", "", ""]


class TestArtifacts:
    def test_what_no_kept_run_reaches_goes_and_its_manifest_is_kept(self, toy):
        recorded(toy)
        recorded(toy, "train.beta=0.2")
        gone = toy.plan()
        assert set(gone.values()) == {"reuse"}
        listed = whys(toy, keep_runs=1)
        assert sorted(path.split("/")[1] for path in listed) == ["evaluate", "train"]
        assert set(listed.values()) == {"no kept run reaches it"}
        before = {path: json.loads((toy.root / path / "manifest.json").read_text()) for path in listed}
        assert sweep(toy, keep_runs=1) == ["", ""]
        for path, manifest in before.items():
            kept = toy.root / "artifacts" / ".pruned" / Path(path).relative_to("artifacts") / "manifest.json"
            assert json.loads(kept.read_text()) == manifest
            assert not (toy.root / path).exists()
        toy.run("train.beta=0.2")
        assert toy.ran == []
        toy.run(until="sft")
        assert toy.ran == []
        toy.run()
        assert toy.ran == ["train", "evaluate"]  # they are what the run is for

    def test_what_is_listed_is_not_touched(self, toy):
        recorded(toy)
        recorded(toy, "train.beta=0.2")
        before = sorted(toy.root.rglob("*"))
        assert found(toy, keep_runs=1)
        assert sorted(toy.root.rglob("*")) == before

    def test_what_a_record_names_outside_the_store_is_never_touched(self, toy):
        outside = toy.root / "mine"
        outside.mkdir()
        (outside / "thesis").write_text("x")
        record = recorded(toy, state="failed")
        kept = json.loads((record.folder / "run.json").read_text())
        for decision in kept["stages"]:
            decision |= {"path": str(outside), "key": "../../mine"}
        (record.folder / "run.json").write_text(json.dumps(kept))
        assert set(sweep(toy, keep_runs=0)) == {""}
        assert (outside / "thesis").read_text() == "x"

    def test_links_are_neither_followed_nor_removed(self, toy):
        outside = toy.root / "mine"
        shutil.copytree(recorded(toy, state="failed").artifact("train").path, outside / "k")
        artifacts = toy.root / "artifacts"
        (artifacts / ".work").mkdir(exist_ok=True)
        (artifacts / ".work" / "train-linked").symlink_to(outside)
        (artifacts / "train" / "linked").symlink_to(outside / "k")
        (artifacts / "evaluate").rename(outside / "evaluate")
        (artifacts / "evaluate").symlink_to(outside / "evaluate")
        inside = work(toy, "train-old", 31)
        (inside / "link").symlink_to(outside)
        aged(inside, 31)
        assert set(sweep(toy, keep_runs=0)) == {""}
        assert (outside / "k" / "out.txt").is_file()
        assert (artifacts / "train" / "linked").is_symlink()
        assert len(list((outside / "evaluate").glob("*/out.txt"))) == 1
        assert not inside.exists()

    @pytest.mark.parametrize("root", ["artifacts", "other"])
    def test_while_a_run_of_any_root_is_under_way_no_artifact_goes_and_what_no_run_takes_up_does(self, toy, root):
        toy.run()
        work(toy, "train-old", 31)
        record = RunRecord.start(toy.settings(), Selection(), toy.root / root)
        assert list(whys(toy, keep_runs=0)) == ["artifacts/.work/train-old"]
        assert sweep(toy, keep_runs=0) == [""]
        record.finish("failed")
        assert len(found(toy, keep_runs=0)) == len(toy.stages)

    def test_what_a_run_of_another_root_was_made_of_stays(self, toy):
        recorded(toy, state="failed")
        other = f"runtime.artifacts='{toy.root / 'other'}'"
        record = RunRecord.start(toy.settings(other), Selection(), toy.root / "other")
        changed = (other, "download.size=1", "sft.steps=6")
        made = toy.run(*changed)
        record.add(made.decisions["train"], None)  # it names nothing that train read
        record.finish("completed")
        assert sweep(toy, keep_runs=0) == [""] * len(toy.stages)
        assert list((toy.root / "data" / "download").iterdir()) == [made.decisions["download"].path]
        assert toy.plan(*changed, until="train")["train"] == "reuse"

    def test_what_a_run_began_to_use_since_it_was_listed_stays(self, toy):
        recorded(toy, state="failed")
        waste = found(toy, keep_runs=0)
        run = recorded(toy, state="running").id
        assert {removed(toy, each) for each in waste} == {f"run {run} has begun"}
        assert toy.plan()["train"] == "reuse"


class TestKilled:
    @pytest.mark.parametrize("function", ["_keep_manifest", "rmtree"])
    def test_a_kill_in_the_middle_leaves_all_or_nothing_of_it_and_the_next_removal_ends_it(
        self, toy, function, monkeypatch
    ):
        recorded(toy, state="failed")
        train = next(each for each in found(toy, keep_runs=0) if each.path.parent.name == "train")

        def killed(*given: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            owner = engine.garbage if function == "_keep_manifest" else engine.garbage.shutil
            patch.setattr(owner, function, killed)
            with pytest.raises(KeyboardInterrupt):
                removed(toy, train)
        whole = Store(toy.root / "artifacts").find("train", train.artifact.key)
        assert (whole is None) == (function == "rmtree")
        assert ("a removal was interrupted" in whys(toy, keep_runs=0).values()) == (function == "rmtree")
        sweep(toy, keep_runs=0)
        assert list((toy.root / "artifacts" / ".trash").iterdir()) == []
        assert not train.path.exists()
        assert train.store.pruned("train", train.artifact.key)


class TestTrouble:
    def test_a_store_that_may_only_be_read_is_listed_and_left_as_it_is(self, toy, monkeypatch):
        recorded(toy, state="failed")
        waste = found(toy, keep_runs=0)

        def refused(self: Path, *given: Any, **named: Any) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", refused)
        assert {removed(toy, each) for each in waste} == {"[Errno 30] Read-only file system"}
        assert toy.plan()["train"] == "reuse"

    def test_what_somebody_else_removed_meanwhile_is_gone(self, toy):
        work(toy, "train-old", 31)
        waste = found(toy)
        sweep(toy)
        assert [removed(toy, each) for each in waste] == [""]

    def test_where_nothing_is_there_nothing_goes(self, toy):
        assert found(toy) == []


class TestScores:
    def scored(self, toy):
        scores = ScoreStore(toy.root / "data" / SCORES).of({"policy": "abc"})
        scores.folder.mkdir(parents=True)
        (scores.folder / "scorer.json").write_text("{}", "utf-8")
        (scores.folder / "shard.parquet").write_bytes(b"12345")
        return scores.folder

    def test_scores_that_no_run_took_over_for_long_go_and_younger_ones_stay(self, toy):
        folder = self.scored(toy)
        assert found(toy) == []
        aged(folder, 31)
        [waste] = found(toy)
        assert (waste.path, waste.why) == (folder, "scores that no run took over for 31 days")
        assert waste.size_bytes > 5
        assert sweep(toy) == [""]
        assert not folder.exists()
        assert found(toy) == []

    def test_scores_that_a_sealed_artifact_of_any_root_names_stay_however_long_nobody_took_them_over(self, toy):
        folder = aged(self.scored(toy), 99)
        toy.hooks["train"] = lambda ctx: ctx.record(scorer=folder.name)
        other = f"runtime.artifacts='{toy.root / 'other'}'"
        RunRecord.start(toy.settings(other), Selection(), toy.root / "other").finish("completed")
        toy.run(other)
        assert folder not in [waste.path for waste in found(toy)]
        shutil.rmtree(toy.root / "other" / "train")
        assert folder in [waste.path for waste in found(toy)]

    def test_scores_stay_while_a_run_is_under_way_and_when_one_began_since(self, toy):
        aged(self.scored(toy), 99)
        [waste] = found(toy)
        record = RunRecord.start(toy.settings(), Selection(), toy.root / "artifacts")
        assert found(toy) == []
        assert removed(toy, waste) == f"run {record.id} has begun"

    def test_a_half_written_shard_goes_and_one_that_may_be_being_written_stays(self, toy):
        folder = self.scored(toy)
        for name, days in ((".abc.parquet.12-34", 2), (".abc.parquet.12-35", 0.5)):
            (folder / name).write_bytes(b"half")
            aged(folder / name, days)
        assert [(waste.path.name, waste.why) for waste in found(toy)] == [(".abc.parquet.12-34", "half written")]

    def test_shards_in_quarantine_go_like_artifacts_there(self, toy):
        place = self.scored(toy).parent / ".quarantine"
        place.mkdir()
        (place / f"abc-{time.time_ns() - 40 * 86_400 * 10**9}").write_bytes(b"broken")
        (place / f"def-{time.time_ns()}").write_bytes(b"broken")
        assert [waste.why for waste in found(toy)] == ["in quarantine for 40 days"]


def test_what_a_kill_left_in_a_folder_right_after_it_was_sealed_goes(toy):
    artifact = toy.run().artifacts["train"]
    recorded(toy)
    left = artifact.path / ".checkpoints"
    (left / "step-1").mkdir(parents=True)
    assert whys(toy)[left.relative_to(toy.root).as_posix()] == "left from its making"
    assert sweep(toy) == [""]
    assert not left.exists()
    assert toy.run().decisions["train"].action == "reuse"


class TestWhatIsInService:
    @staticmethod
    def promote(toy: Any, *overrides: str) -> str:
        """A version on the toys' policy, below their evaluation; returns its key."""
        made, store = toy.run(*overrides).artifacts, Store(toy.root / "artifacts")
        key = made["train"].key
        work = store.work("promote", key)
        told = {"candidate": key, "against": None, "stages": {"sft": made["sft"].key}}
        (work / "handed_down.json").write_text(json.dumps(told))
        inputs = {stage: made[stage].digest for stage in ("tokenize", "sft", "train", "evaluate")}
        store.seal("promote", key, work, {"payload": {"inputs": inputs}, "metrics": {}, "seconds": 0.0})
        return str(key)

    @pytest.fixture
    def gated(self, toy):
        """The toys and a stage `promote`, so that its artifacts may go."""
        toy.stages.append(
            Stage("promote", Strict, 1, lambda ctx: None, ("train",), skip=lambda config, configs: "by hand")
        )
        return toy

    def test_stays_with_all_that_it_was_made_of_whatever_its_age_and_the_rest_goes(self, gated):
        old = self.promote(gated, "train.beta=0.2", "sft.steps=6")
        kept = self.promote(gated)
        assert {path.split("/")[1] for path in whys(gated, keep_runs=0)} >= {"promote", "sft", "train"}
        Service(gated.root / "artifacts", "toy").put(kept)
        gone = whys(gated, keep_runs=0)
        assert sorted(path.split("/")[1] for path in gone) == ["evaluate", "promote", "sft", "train"]
        assert f"artifacts/promote/{old}" in gone
        assert set(sweep(gated, keep_runs=0)) == {""}
        assert Service(gated.root / "artifacts", "toy").problems(kept) == []
        assert set(gated.plan().values()) == {"reuse", "skip"}

    def test_that_was_put_there_since_it_was_found_to_be_waste_is_left(self, gated):
        key = self.promote(gated)
        listed = {each.path.parent.name: each for each in found(gated, keep_runs=0)}
        Service(gated.root / "artifacts", "toy").put(key)
        for stage in ("promote", "sft"):
            assert removed(gated, listed[stage]) == "it was put into service"
            assert listed[stage].path.is_dir()

    def test_below_another_root_on_the_same_data_keeps_the_data(self, gated):
        other = f"runtime.artifacts='{gated.root / 'other'}'"
        RunRecord.start(gated.settings(other), Selection(), gated.root / "other").finish("failed")
        downloaded = gated.run(other).artifacts["download"]
        store = Store(gated.root / "other")
        work = store.work("promote", "a" * 16)
        told = {"candidate": "c", "against": None, "stages": {"download": downloaded.key}}
        (work / "handed_down.json").write_text(json.dumps(told))
        store.seal("promote", "a" * 16, work, {"payload": {"inputs": {}}, "metrics": {}, "seconds": 0.0})
        assert f"data/download/{downloaded.key}" in whys(gated, keep_runs=0)
        Service(store.root, "other").put("a" * 16)
        assert f"data/download/{downloaded.key}" not in whys(gated, keep_runs=0)

    def test_what_a_kill_left_of_a_switch_goes(self, gated):
        Service(gated.root / "artifacts", "toy").put(self.promote(gated))
        left = gated.root / "artifacts" / "promoted" / "toy" / ".state.json.12-34"
        left.write_text("{")
        aged(left, 2)
        assert [path for path in whys(gated) if "promoted" in path] == ["artifacts/promoted/toy/.state.json.12-34"]
