import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.artifact import Artifact
from engine.errors import StoreError
from engine.processes import this_process
from engine.promotion.service import Service
from engine.reach import Reach, run_roots, under_way
from engine.runs import RECORD, ROOTS, RunRecord
from engine.selection import Selection
from engine.stage import Decision
from engine.store import Store

DAY = 86_400.0


@pytest.fixture
def record(toy):
    """Makes the record of a run that is over, so many days ago, that named one key of `train`."""

    def make(key: str, *, days: float = 0.0, state: str = "completed", profile: str = "toy") -> RunRecord:
        made = RunRecord.start(toy.settings(), Selection(), toy.root / "artifacts")
        made.profile = made.origin = profile
        made.began = time.time() - days * DAY
        made.add(Decision("train", "run", "never made", key), None)
        if state != "running":
            made.finish(state)
        return made

    return make


def named(toy, days: float = 30, keep_runs: int | None = None) -> set[str]:
    return {key for _, key in Reach.of_runs([toy.root / "artifacts"], days * DAY, keep_runs).named}


def test_runs_that_are_young_are_kept_and_of_the_old_the_latest_completed_of_each_profile(toy, record):
    for key, days, state, profile in (
        ("a", 99, "completed", "one"),
        ("b", 98, "completed", "one"),
        ("c", 97, "failed", "one"),
        ("d", 99, "completed", "two"),
        ("e", 3, "failed", "one"),
    ):
        record(key, days=days, state=state, profile=profile)
    assert named(toy) == {"b", "d", "e"}
    assert named(toy, days=2) == {"b", "d"}
    assert named(toy, days=98.5) == {"b", "c", "d", "e"}


def test_of_one_profile_under_two_names_one_run_is_the_latest(toy, record):
    for key, name in (("a", "toy"), ("b", "configs/toy.toml")):
        made = record(key, days=99)
        kept = json.loads((made.folder / RECORD).read_text()) | {"profile": str(toy.root / name), "origin": ""}
        (made.folder / RECORD).write_text(json.dumps(kept | ({"profile": "toy"} if name == "toy" else {})))
    assert named(toy) == {"b"}


def test_so_many_runs_are_kept_as_are_asked_for_whatever_their_age(toy, record):
    for key in "abcd":
        record(key, state="failed", days=50)
    assert named(toy, keep_runs=2) == {"c", "d"}
    assert named(toy, keep_runs=0) == set()
    assert named(toy) == set()


def test_a_run_that_is_not_over_is_kept_and_told_of_whatever_its_root(toy, record):
    record("b", state="failed")
    roots = [toy.root / "artifacts", toy.root / "other"]
    assert under_way(roots) is None
    elsewhere = RunRecord.start(toy.settings(), Selection(), roots[1])
    assert [each.id for each in Reach.of_runs(roots, 0.0, 0).going] == [elsewhere.id]
    assert under_way(roots).folder == elsewhere.folder
    elsewhere.finish("completed")
    running = record("a", days=50, state="running")
    assert named(toy, keep_runs=0) == {"a"}
    assert under_way(roots[::-1]).id == running.id
    (running.folder / RECORD).write_text("{")
    assert under_way(roots) is None


def test_each_root_keeps_as_many_runs_and_the_latest_completed_of_its_own(toy, record):
    record("a", days=50)
    roots = [toy.root / "artifacts", toy.root / "other"]
    made = RunRecord.start(toy.settings(), Selection(), roots[1])
    made.add(Decision("train", "run", "never made", "b"), None)
    made.finish("completed")
    assert {key for _, key in Reach.of_runs(roots, DAY, 0).named} == {"a", "b"}


class TestRoots:
    def start(self, toy, name):
        RunRecord.start(toy.settings(), Selection(), toy.root / name).finish("completed")

    def test_every_root_whose_runs_use_the_data_is_known_once(self, toy):
        own = toy.root / "artifacts"
        assert run_roots(toy.root / "data", own) == [own]
        for name in ("artifacts", "other", "other"):
            self.start(toy, name)
        (toy.root / "data" / ROOTS / ".half.1-2").write_text("half")
        assert set(run_roots(toy.root / "data", own)) == {own, toy.root / "other"}
        assert len(run_roots(toy.root / "data", own)) == 2

    def test_a_root_that_is_gone_needs_nothing(self, toy):
        self.start(toy, "other")
        shutil.rmtree(toy.root / "other")
        roots = run_roots(toy.root / "data", toy.root / "artifacts")
        assert Reach.of_runs(roots, DAY, None) == Reach(frozenset())

    def test_a_note_that_was_damaged_and_runs_that_cannot_be_seen_are_errors(self, toy, monkeypatch):
        self.start(toy, "other")
        (note,) = (toy.root / "data" / ROOTS).iterdir()
        text = note.read_text()
        note.write_text(text[:-1])
        with pytest.raises(StoreError, match="damaged") as error:
            run_roots(toy.root / "data", toy.root / "artifacts")
        assert error.value.where == str(note)
        self.start(toy, "other")
        assert note.read_text() == text

        iterdir = Path.iterdir
        for closed in (toy.root / "other" / "runs", note.parent):

            def refused(self: Path, closed: Path = closed) -> Iterator[Path]:
                if self == closed:
                    raise PermissionError(13, "Permission denied")
                return iterdir(self)

            monkeypatch.setattr(Path, "iterdir", refused)
            with pytest.raises(StoreError, match="Permission denied") as error:
                run_roots(toy.root / "data", toy.root / "artifacts")
            assert error.value.where == str(closed)

    def test_data_that_may_only_be_read_fails_no_run(self, toy, caplog):
        (toy.root / "data").mkdir()
        (toy.root / "data" / ROOTS).write_text("a file")
        self.start(toy, "artifacts")
        assert "will not know of this run" in caplog.text


def test_a_run_of_the_future_is_no_old_one(toy, record):
    record("a", days=-500, state="failed")
    assert named(toy, days=0) == {"a"}


def test_what_a_record_that_cannot_be_read_may_have_made_is_not_given_up(toy, record, caplog):
    artifact = toy.run().artifacts["train"]
    assert not Reach.of_runs([toy.root / "artifacts"], 0.0, 0).may_use(artifact)
    damaged = record("a", state="failed").folder
    (damaged / RECORD).write_text("{")
    later = toy.run("train.beta=0.2").artifacts["train"]
    reach = Reach.of_runs([toy.root / "artifacts"], 0.0, 0)
    assert reach.may_use(later)
    assert "nothing goes that was made since" in caplog.text


def test_all_that_something_named_was_made_of_is_reached_also_through_a_removed_one(toy):
    first = toy.run()
    other = toy.run("download.size=1", "sft.steps=6")

    def known() -> list[Artifact]:
        stores = {stage.name: Store(toy.root / stage.keeps) for stage in toy.stages}
        return [each for name, store in stores.items() for each in (*store.all(name), *store.all_pruned(name))]

    train = first.artifacts["train"]
    reach = Reach(frozenset({("train", train.key)}), float("inf"))
    expected = {(name, first.decisions[name].key) for name in ("download", "tokenize", "sft", "train")}
    assert reach.closed(known()) == expected
    assert other.decisions["download"].key not in {key for _, key in expected}

    sft = first.artifacts["sft"]
    kept = toy.root / "artifacts" / ".pruned" / "sft" / sft.key
    kept.mkdir(parents=True)
    shutil.move(sft.path / "manifest.json", kept / "manifest.json")
    shutil.rmtree(sft.path)
    assert reach.closed(known()) == expected


def test_the_process_that_runs_is_in_the_record(toy, record):
    assert RunRecord.load(record("a").folder).process == this_process()


class TestWhatIsInService:
    @pytest.fixture
    def versions(self, toy) -> list[str]:
        """Four versions that were put into service one after the other."""
        store, keys = Store(toy.root / "artifacts"), [f"{number:016x}" for number in range(4)]
        for key in keys:
            for stage, name in (("sft", f"policy-{key}"), ("promote", key)):
                work = store.work(stage, name)
                told = {"candidate": f"model {key}", "against": None, "stages": {"sft": f"policy-{key}"}}
                (work / "handed_down.json").write_text(json.dumps(told))
                store.seal(stage, name, work, {"payload": {"inputs": {}}, "metrics": {}})
            Service(store.root, "toy").put(key, forced=True)
        return keys

    def test_is_named_with_the_two_before_it_and_what_they_were_made_of_whatever_their_age(self, toy, versions):
        reach = Reach.of_runs([toy.root / "artifacts"], 0.0, 0)
        kept = versions[1:]
        assert reach.named == {("promote", key) for key in kept} | {("sft", f"policy-{key}") for key in kept}

    def test_of_every_service_is_named(self, toy, versions):
        Service(toy.root / "artifacts", "other").put(versions[0], forced=True)
        assert ("promote", versions[0]) in Reach.of_runs([toy.root / "artifacts"], 0.0, 0).named

    def test_that_cannot_be_told_is_an_error_and_not_nothing(self, toy, versions):
        (toy.root / "artifacts" / "promoted" / "toy" / "state.json").write_text("{")
        with pytest.raises(StoreError, match="cannot be told which model is in service"):
            Reach.of_runs([toy.root / "artifacts"], 0.0, 0)
