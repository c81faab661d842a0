import json
import os
import threading
from pathlib import Path

import pytest

import engine.store
from engine.errors import StoreError, TransientError
from engine.store import MANIFEST, Store

MANIFEST_OF_TESTS = {"payload": {"config": {"beta": 0.1}}, "metrics": {"loss": 0.5}, "sealed_at": "2026-01-01"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def sealed(store: Store, text: str = "hello", *, key: str = "k1", log: str = "a log", **manifest):
    work = store.work("train", key, fresh=True)
    (work / "deep").mkdir()
    (work / "deep" / "a.txt").write_text(text)
    (work / "logs").mkdir()
    (work / "logs" / "log.txt").write_text(log)
    return store.seal("train", key, work, MANIFEST_OF_TESTS | manifest)


def later(path: Path, content: bytes) -> None:
    """Overwrites a file and lets its time show it."""
    path.write_bytes(content)
    os.utime(path, ns=(7, 7))


def test_what_was_sealed_is_found_with_everything_it_was_sealed_with(store):
    artifact = sealed(store)
    found = store.find("train", "k1")
    assert found is not None
    assert found.path == artifact.path == store.root / "train" / "k1"
    assert found.metrics == {"loss": 0.5}
    assert found.file("deep/a.txt").read_text() == "hello"
    assert store.verify(found) == []
    assert not (store.root / ".work" / "train-k1").exists()


def test_a_file_the_artifact_does_not_have_is_an_error_that_names_both(store):
    with pytest.raises(StoreError, match=r"train/k1 has no `b\.txt`"):
        sealed(store).file("b.txt")


def test_equal_content_gives_the_same_digest_whatever_the_key_the_config_and_the_logs(store):
    one = sealed(store)
    other = sealed(store, key="k2", log="another log", payload={"config": {"beta": 0.2}})
    assert one.digest == other.digest
    assert sealed(store, "other text", key="k3").digest != one.digest


def test_nothing_is_there_before_the_last_rename(store, monkeypatch):
    def killed(self, work, target, replaced):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_swap_in", killed)
    with pytest.raises(KeyboardInterrupt):
        sealed(store)
    assert store.find("train", "k1") is None
    assert store.all("train") == []
    assert (store.work_folder("train", "k1") / "deep" / "a.txt").is_file()


def test_an_attempt_finds_the_files_of_the_last_one_but_no_manifest_and_fresh_finds_none(store):
    assert not store.work_folder("train", "k1").exists()
    work = store.work("train", "k1")
    assert work == store.work_folder("train", "k1")
    (work / "part").write_text("half")
    (work / MANIFEST).write_text("{}")
    assert [path.name for path in store.work("train", "k1").iterdir()] == ["part"]
    assert list(store.work("train", "k1", fresh=True).iterdir()) == []


def test_the_old_artifact_stays_until_the_new_one_is_sealed(store):
    sealed(store, "old")
    work = store.work("train", "k1", fresh=True)
    (work / "a.txt").write_text("new")
    assert store.find("train", "k1").file("deep/a.txt").read_text() == "old"
    new = store.seal("train", "k1", work, MANIFEST_OF_TESTS)
    assert new.file("a.txt").read_text() == "new"
    assert not (new.path / "deep").exists()
    assert list((store.root / ".work").iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_kill_while_it_is_sealed_leaves_what_the_attempt_can_go_on_from(store, monkeypatch, call):
    work = store.work("train", "k1")
    (work / "result.bin").write_bytes(b"result")
    (work / ".checkpoints" / "step-1").mkdir(parents=True)
    (work / ".checkpoints" / "step-1" / "weights").write_bytes(b"weights")

    def killed(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, call, killed)
        with pytest.raises(KeyboardInterrupt):
            store.seal("train", "k1", work, {"payload": {}, "metrics": {}})
    assert (store.work("train", "k1") / ".checkpoints" / "step-1" / "weights").read_bytes() == b"weights"
    sealed = store.seal("train", "k1", work, {"payload": {}, "metrics": {}})
    assert list(sealed.manifest["files"]) == ["result.bin"]
    assert sorted(path.name for path in sealed.path.iterdir()) == ["manifest.json", "result.bin"]


def test_what_a_kill_left_of_an_atomic_write_is_not_sealed(store):
    work = store.work("train", "k1")
    (work / "logs" / ".half").mkdir(parents=True)
    for name in (".metrics.json.123-456", "logs/.steps.jsonl.123-456", "logs/.half/a", "metrics.json"):
        (work / name).write_text("x")
    artifact = store.seal("train", "k1", work, MANIFEST_OF_TESTS)
    assert set(artifact.manifest["files"]) == {"metrics.json"}
    assert {path.name for path in artifact.path.rglob("*")} == {"logs", "metrics.json", MANIFEST}


def test_who_is_making_an_artifact_is_told_while_they_do(store):
    assert store.holder("train", "k1") is None
    with store.locked("train", "k1", 0):
        assert store.holder("train", "k1").startswith(f"process {os.getpid()} of ")
    assert store.holder("train", "k1") is None


@pytest.fixture
def crashed(store, monkeypatch) -> Store:
    """A store in which a run died after the old artifact was put aside and before the new one was in its place."""
    sealed(store, "old")
    rename = Path.rename

    def dies_before_the_second(self: Path, target: Path) -> Path:
        if self.name == "train-k1":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies_before_the_second)
        with pytest.raises(KeyboardInterrupt):
            sealed(store, "new")
    assert not (store.root / "train" / "k1").exists()
    return store


def test_an_artifact_that_a_crash_left_aside_is_brought_back(crashed):
    found = Store(crashed.root).find("train", "k1")
    assert found.file("deep/a.txt").read_text() == "old"
    assert crashed.verify(found) == []


def test_an_artifact_that_is_being_replaced_right_now_is_left_to_whoever_replaces_it(crashed):
    with crashed.locked("train", "k1", 0):
        (crashed.root / "train" / "k1").rename(crashed._replaced("train", "k1"))
        assert Store(crashed.root).find("train", "k1") is None
    with crashed.locked("train", "k1", 0):
        assert crashed.find("train", "k1") is not None


def test_an_artifact_that_cannot_be_brought_back_is_an_error_of_the_store(crashed, monkeypatch):
    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StoreError, match="Permission denied"), crashed.locked("train", "k1", 0):
        pass
    assert crashed.find("train", "k1") is None


def test_a_work_folder_that_has_nothing_sealed_in_it_is_not_brought_back(store):
    store._replaced("train", "k1").mkdir(parents=True)
    assert store.find("train", "k1") is None


@pytest.mark.parametrize("content", [b"hellp", b"hell", b"hello!", b""])
def test_a_flipped_shortened_or_lengthened_file_is_found(store, content):
    artifact = sealed(store)
    later(artifact.path / "deep" / "a.txt", content)
    assert len(store.verify(artifact)) == 1
    assert store.verify(artifact)[0].startswith("deep/a.txt ")


def test_a_file_that_was_added_is_found(store):
    artifact = sealed(store)
    (artifact.path / "deep" / "b.txt").write_text("extra")
    assert store.verify(artifact) == ["deep/b.txt was not sealed with it"]


def test_a_flip_that_leaves_size_and_times_is_found_when_everything_is_read_and_then_by_every_use(store, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)
    artifact = sealed(store)
    flipped = artifact.path / "deep" / "a.txt"
    mark, known = engine.files.mark, engine.files.mark(flipped)
    flipped.write_text("hellp")
    with monkeypatch.context() as patch:
        patch.setattr("engine.files.mark", lambda path: known if path == flipped else mark(path))
        assert Store(store.root).verify(artifact) == []
        problem = ["deep/a.txt does not have the content it was sealed with"]
        assert Store(store.root).verify(artifact, read_all=True) == problem
        assert Store(store.root).verify(artifact) == problem


def test_a_memory_that_tells_a_wrong_digest_makes_no_artifact_broken(store, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)
    artifact = sealed(store)
    memory = store.root / ".hashes.json"
    entries = {name: [*entry[:-1], "0" * 64] for name, entry in json.loads(memory.read_text()).items()}
    memory.write_text(json.dumps(entries))
    assert Store(store.root).verify(artifact) == []


def test_a_file_that_changed_while_it_was_sealed_is_found_at_its_first_use(store, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)
    swap_in = Store._swap_in

    def changed_before(self, work, target, replaced):
        later(work / "deep" / "a.txt", b"hellp")
        swap_in(self, work, target, replaced)

    monkeypatch.setattr(Store, "_swap_in", changed_before)
    assert Store(store.root).verify(sealed(store)) == ["deep/a.txt does not have the content it was sealed with"]


def test_a_file_that_is_gone_is_found_and_a_damaged_log_too(store):
    artifact = sealed(store)
    (artifact.path / "deep" / "a.txt").unlink()
    later(artifact.path / "logs" / "log.txt", b"b log")
    assert store.verify(artifact) == [
        "deep/a.txt is gone",
        "logs/log.txt does not have the content it was sealed with",
    ]


def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(store, monkeypatch):
    artifact = sealed(store)

    def broken(self, path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(engine.store.HashMemory, "of", broken)
    assert all("cannot be read ([Errno 5] Input/output error)" in each for each in store.verify(artifact))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "",
        lambda text: text.replace('"loss": 0.5', '"loss": 0.6'),
        lambda text: text.replace('"digest"', '"digset"'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_manifest_makes_the_artifact_broken_and_unlisted(store, damage):
    path = sealed(store).path / MANIFEST
    path.write_text(damage(path.read_text()))
    found = store.find("train", "k1")
    assert "manifest cannot be read" in store.verify(found)[0]
    assert store.all("train") == []


def test_what_is_broken_goes_to_quarantine_and_is_not_deleted(store):
    place = store.quarantine(sealed(store))
    assert store.find("train", "k1") is None
    assert (place / "deep" / "a.txt").read_text() == "hello"


def test_artifacts_are_listed_newest_first(store):
    for key, day in (("a", "02"), ("b", "03"), ("c", "01")):
        sealed(store, key=key, sealed_at=f"2026-01-{day}")
    assert [artifact.key for artifact in store.all("train")] == ["b", "a", "c"]


def test_newest_is_the_later_moment_whatever_the_zone_and_nonsense_is_oldest(store):
    for key, moment in (("a", "2026-10-25T02:30:00+0200"), ("b", "2026-10-25T02:10:00+0100"), ("c", "zzz")):
        sealed(store, key=key, sealed_at=moment)
    assert [artifact.key for artifact in store.all("train")] == ["b", "a", "c"]


def test_fresh_work_never_starts_among_old_files(store, monkeypatch):
    (store.work("train", "k1") / "old").write_text("old")

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine.store.shutil, "rmtree", refused)
    with pytest.raises(StoreError, match="Permission denied"):
        store.work("train", "k1", fresh=True)


def test_an_attempt_says_what_it_is_of_and_what_is_sealed_bears_no_trace_of_it(store):
    work = store.work("train", "k1", payload={"config": {"beta": 0.1}})
    assert [each.payload for each in store.attempts("train")] == [{"config": {"beta": 0.1}}]
    with store.locked("train", "k1", 0):
        assert store.attempts("train") == []  # it goes on right now
    (work / "a.txt").write_text("x")
    artifact = store.seal("train", "k1", work, MANIFEST_OF_TESTS)
    assert {path.name for path in artifact.path.iterdir()} == {"a.txt", MANIFEST}


def test_what_is_sealed_again_is_pruned_no_more(store):
    artifact = sealed(store)
    kept = store.root / ".pruned" / "train" / "k1"
    kept.mkdir(parents=True)
    (kept / MANIFEST).write_text((artifact.path / MANIFEST).read_text())
    assert store.pruned("train", "k1").digest == artifact.digest
    assert [each.pruned for each in store.all_pruned("train")] == [True]
    sealed(store)
    assert store.pruned("train", "k1") is None


def test_links_below_a_stage_are_no_artifacts(store):
    artifact = sealed(store)
    (artifact.path.parent / "k2").symlink_to(artifact.path)
    assert [path.name for path in store.folders("train")] == ["k1"]


def test_verifying_what_was_just_sealed_reads_nothing_again(store, monkeypatch):
    monkeypatch.setattr("engine.files._TICK_NANOSECONDS", -1)
    artifact = sealed(store)
    monkeypatch.setattr("engine.files.file_digest", lambda path: pytest.fail(f"{path} was read"))
    assert Store(store.root).verify(artifact) == []


def test_a_root_that_is_a_file_is_a_clear_error_wherever_it_is_met(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    assert store.find("train", "k1") is None
    for attempt in (lambda: store.work("train", "k1"), lambda: store.locked("train", "k1", 0).__enter__()):
        with pytest.raises(StoreError, match="cannot be written") as error:
            attempt()
        assert "runtime.artifacts" in error.value.fix


def test_a_full_disk_while_sealing_is_a_clear_error_and_leaves_no_artifact(store, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store, "write_atomically", full)
    with pytest.raises(StoreError, match="No space left"):
        sealed(store)
    assert store.find("train", "k1") is None


def test_a_folder_that_may_not_be_looked_into_is_a_clear_error(store, monkeypatch):
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(StoreError, match="cannot be read"):
        store.find("train", "k1")


def test_a_quarantine_that_cannot_be_written_is_a_clear_error(store):
    artifact = sealed(store)
    (store.root / ".quarantine").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        store.quarantine(artifact)


def test_only_one_makes_an_artifact_at_a_time(store):
    with store.locked("train", "k1", 0):
        seen: list[str] = []

        def second() -> None:
            try:
                with Store(store.root).locked("train", "k1", 0):
                    seen.append("held twice")
            except TransientError as error:
                seen.append(error.problem)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert seen == ["another run is making train k1"]


def test_the_manifest_can_be_read_by_people(store):
    manifest = json.loads((sealed(store).path / MANIFEST).read_text())
    assert manifest["stage"] == "train"
    assert manifest["files"]["deep/a.txt"]["bytes"] == 5
