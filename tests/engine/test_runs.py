import json
import logging
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

import engine.runs
from engine.config import one_name
from engine.errors import StoreError
from engine.processes import Process
from engine.runs import RunRecord, all_runs, latest, maker, mark_crashed, run_of
from engine.selection import Selection
from engine.stage import Decision


@pytest.fixture
def record(toy) -> RunRecord:
    return started(toy)


def started(toy, *overrides: str, **selection) -> RunRecord:
    return RunRecord.start(toy.settings(*overrides), Selection(**selection), toy.root / "artifacts")


def test_a_record_is_there_from_the_first_moment_and_true_at_every_later_one(toy):
    record = started(toy, "train.beta=0.2", since="sft")
    assert RunRecord.load(record.folder) == record
    assert record.state == "running"
    assert record.changed["train.beta"] == 0.2
    assert record.config["train"]["beta"] == 0.2
    assert record.selection == {"only": None, "since": "sft", "until": None, "force": False}
    record.add(Decision("sft", "run", "never made", "k", Path("artifacts/sft/k"), 1.5), None)
    assert RunRecord.load(record.folder) == record
    assert RunRecord.load(record.folder).decisions[0].path == Path("artifacts/sft/k")


def set_clock(monkeypatch, *moment: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(*moment)

    monkeypatch.setattr(engine.runs, "datetime", Clock)


def test_the_ids_of_runs_sort_by_time_and_are_never_the_same(toy, monkeypatch):
    set_clock(monkeypatch, 2026, 1, 2, 3, 4, 5)
    assert [started(toy).id for _ in range(3)] == [
        "20260102-030405-toy",
        "20260102-030405-toy-02",
        "20260102-030405-toy-03",
    ]
    assert latest(toy.root / "artifacts").id == "20260102-030405-toy-03"


def test_a_clock_that_was_set_back_puts_no_run_before_an_earlier_one(toy, monkeypatch):
    set_clock(monkeypatch, 2027, 1, 2, 3, 4, 59)
    started(toy)
    set_clock(monkeypatch, 2026, 1, 1)
    assert [started(toy).id for _ in range(2)] == ["20270102-030500-toy", "20270102-030501-toy"]
    assert latest(toy.root / "artifacts").id == "20270102-030501-toy"


@pytest.mark.parametrize("name", ["99991231-235959-toy", "99999999-000000-toy", "notes", "2026"])
def test_a_folder_that_is_no_run_stops_none(toy, name):
    (toy.root / "artifacts" / "runs" / name).mkdir(parents=True)
    assert started(toy).folder.is_dir()


def test_a_run_takes_no_negative_time_when_the_clock_is_set_back(record, monkeypatch):
    monkeypatch.setattr(engine.runs.time, "time", lambda: 0.0)
    record.finish("completed")
    assert record.seconds >= 0


def test_a_profile_given_by_its_path_gives_a_name_that_is_no_path(toy, tmp_path):
    path = tmp_path / "my own profile.toml"
    path.write_text("")
    settings = engine.config.load(str(path), [], toy.stages, {})
    record = RunRecord.start(settings, Selection(), tmp_path)
    assert record.folder.parent == tmp_path / "runs"
    assert record.id.endswith("-my_own_profile")


def test_a_profile_has_one_name_however_it_is_called(toy, tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text("")
    monkeypatch.chdir(tmp_path / "configs")
    for name in ("toy", "toy.toml", "../configs/toy.toml", str(tmp_path / "configs" / "toy.toml")):
        assert one_name(name) == "toy", name
    assert one_name("../own.toml") == str(tmp_path / "own.toml")
    for gone in ("own", "gone.toml", "\0", "x" * 5000):
        assert one_name(gone) == gone


def test_a_record_keeps_what_its_relative_path_meant_and_one_of_an_earlier_version_goes_by_its_name(
    toy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("")
    record = RunRecord.start(engine.config.load("own.toml", [], toy.stages, {}), Selection(), tmp_path)
    monkeypatch.chdir("/")
    assert RunRecord.load(record.folder).origin == str(tmp_path / "own.toml")
    kept = json.loads((record.folder / "run.json").read_text())
    del kept["origin"]
    for profile, origin in (("toy", "toy"), ("own.toml", "own.toml")):
        (record.folder / "run.json").write_text(json.dumps(kept | {"profile": profile}))
        assert RunRecord.load(record.folder).origin == origin


def test_a_stage_that_is_told_twice_is_kept_once_with_the_last_word(record):
    record.add(Decision("train", "run", "first", "k"), None)
    record.add(Decision("evaluate", "run", "never made", "k"), None)
    record.add(Decision("train", "resume", "second", "k"), None)
    assert [(each.stage, each.why) for each in record.decisions] == [("evaluate", "never made"), ("train", "second")]


def test_the_artifact_of_a_stage_is_known_while_it_is_there(toy, record):
    artifact = toy.run().artifacts["train"]
    record.add(Decision("train", "run", "never made", seconds=1.0), artifact)
    assert record.artifact("train").metrics["loss"] == 0.25
    assert record.artifact("sft") is None
    artifact.path.rename(toy.root / "elsewhere")
    assert record.artifact("train") is None


def test_an_artifact_is_found_beside_the_record_from_another_folder_and_after_all_was_moved(toy, tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text("[runtime]\nartifacts = 'kept/artifacts'\ndata = 'data'\n")
    monkeypatch.chdir(tmp_path)
    settings = engine.config.load("own.toml", [], toy.stages, {"model": engine.sources.ModelSource})
    record = RunRecord.start(settings, Selection(), Path("kept/artifacts"))
    places = {"train": Path("kept/artifacts/train/k"), "download": Path("data/download/k")}
    for stage, place in places.items():
        place.mkdir(parents=True)
        record.add(Decision(stage, "run", "", "k", place), None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = RunRecord.load(tmp_path / "kept/artifacts/runs" / record.id)
    for stage, place in places.items():
        assert found.artifact(stage).path.resolve() == tmp_path / place
    (tmp_path / "data/download/k").rmdir()
    assert found.artifact("download") is None
    for strange in ({}, {"runtime": None}, {"runtime": {"data": 3, "artifacts": ""}}):
        found.config = strange
        assert found.artifact("train").path.resolve() == tmp_path / places["train"]
        assert found.artifact("download") is None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_finished_run_says_how_it_ended_and_leaves_a_report(record, state):
    record.finish(state, "some error")
    kept = RunRecord.load(record.folder)
    assert (kept.state, kept.error, kept.seconds is not None) == (state, "some error", True)
    assert (record.folder / "report.md").read_text().startswith(f"# Run {record.id}".replace("_", r"\_"))
    assert f"Run {record.id}" in (record.folder / "report.html").read_text()


def test_a_root_that_cannot_be_written_is_a_warning_and_no_more(toy, caplog):
    (toy.root / "artifacts").write_text("a file")
    with caplog.at_level(logging.WARNING, "dpo"):
        record = started(toy)
        record.add(Decision("train", "run", ""), None)
        record.finish("completed")
    assert record.state == "completed"
    assert "will not be recorded" in caplog.text
    assert "report of run" in caplog.text


def test_a_report_that_breaks_is_a_warning_and_no_more(record, monkeypatch, caplog):
    def broken(record: RunRecord) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("engine.reports.run.run_report", broken)
    record.finish("completed")
    assert "a bug" in caplog.text
    assert RunRecord.load(record.folder).state == "completed"


def test_where_the_page_with_pictures_breaks_the_short_one_is_there_all_the_same(record, monkeypatch, caplog):
    def broken(record: RunRecord) -> Path:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("engine.reports.run.write_report", broken)
    record.finish("completed")
    assert "a bug" in caplog.text
    assert (record.folder / "report.md").is_file()
    assert not (record.folder / "report.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": 3}', '{"stages": [], "what": 1}', '{"stages": [{}]}'])
def test_a_record_that_is_damaged_is_an_error_and_passed_over_by_the_latest(toy, text, caplog):
    good = started(toy)
    bad = good.folder.with_name("99990101-000000-toy")
    bad.mkdir()
    (bad / "run.json").write_text(text)
    with pytest.raises(StoreError, match="record cannot be read"):
        RunRecord.load(bad)
    assert latest(toy.root / "artifacts").id == good.id


def test_where_nothing_ran_there_is_no_latest_run(tmp_path):
    assert latest(tmp_path) is None
    assert all_runs(tmp_path) == []


def test_the_record_can_be_read_by_people(record):
    record.add(Decision("train", "run", "指令", "k"), None)
    text = (record.folder / "run.json").read_text()
    assert "指令" in text
    assert json.loads(text)["stages"][0]["stage"] == "train"


def test_ids_that_are_all_taken_do_not_stop_the_run(toy, monkeypatch):
    def taken(self: Path, *, parents: bool, exist_ok: bool = False) -> None:
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", taken)
    assert started(toy).id.endswith("-toy-99")


class TestCrashes:
    @pytest.fixture
    def killed(self, toy) -> RunRecord:
        """A run whose process, a child of this one, was killed."""
        script = (
            "import sys, pathlib; from engine.config import load; from engine.runs import RunRecord;"
            "from engine.selection import Selection;"
            "settings = load(sys.argv[1], [], [], {});"
            "print(RunRecord.start(settings, Selection(), pathlib.Path(sys.argv[2])).folder, flush=True); input()"
        )
        words = [sys.executable, "-c", script, str(toy.root / "configs" / "toy.toml"), str(toy.root / "artifacts")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            folder = Path(process.stdout.readline().strip())
            assert mark_crashed(toy.root / "artifacts") == []
            process.kill()
        return RunRecord.load(folder)

    def test_a_run_whose_process_is_gone_is_marked_by_the_next_one_and_its_report_says_so(self, toy, killed):
        assert killed.state == "running"
        (killed.folder / "report.html").write_text("it is running")
        record = started(toy)
        kept = RunRecord.load(killed.folder)
        assert (kept.state, kept.seconds) == ("crashed", None)
        assert f"process {kept.pid} on {kept.host} is gone" in kept.error
        assert "Crashed." in (kept.folder / "report.md").read_text()
        assert not (kept.folder / "report.html").exists()  # drawn when it is asked for: the next run has work to do
        assert RunRecord.load(record.folder).state == "running"

    def test_marking_twice_or_by_many_at_once_is_the_same_as_once(self, toy, killed):
        root = toy.root / "artifacts"
        threads = [threading.Thread(target=mark_crashed, args=(root,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert RunRecord.load(killed.folder).state == "crashed"
        assert mark_crashed(root) == []

    @pytest.mark.parametrize("change", [{"host": "another host"}, {"process_born": ""}, {"state": "failed"}])
    def test_a_run_of_another_host_or_of_nobody_knows_whom_or_one_that_is_over_is_left_alone(self, toy, killed, change):
        path = killed.folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        before = path.read_text()
        assert mark_crashed(toy.root / "artifacts") == []
        assert path.read_text() == before

    def test_a_run_that_ended_properly_while_it_was_looked_at_is_left_as_it_ended(self, toy, killed, monkeypatch):
        def ends_meanwhile(process) -> bool:
            RunRecord.load(killed.folder).finish("completed")
            return True

        monkeypatch.setattr(engine.runs, "is_gone", ends_meanwhile)
        assert mark_crashed(toy.root / "artifacts") == []
        assert RunRecord.load(killed.folder).state == "completed"

    def test_a_record_of_an_earlier_version_without_a_process_is_read(self, killed):
        path = killed.folder / "run.json"
        kept = json.loads(path.read_text())
        for name in ("pid", "host", "process_born"):
            del kept[name]
        path.write_text(json.dumps(kept))
        assert RunRecord.load(killed.folder).pid == 0

    def test_a_root_that_may_only_be_read_is_listed_all_the_same(self, toy, killed, monkeypatch, caplog):
        def refused(path: Path, text: str) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(engine.runs, "write_atomically", refused)
        assert mark_crashed(toy.root / "artifacts") == [killed.id]
        assert RunRecord.load(killed.folder).state == "running"


def test_the_run_that_made_an_artifact_or_was_a_process_is_found(toy, record):
    root = toy.root / "artifacts"
    record.add(Decision("train", "run", "", "k"), None)
    later = started(toy)
    later.add(Decision("train", "reuse", "", "k"), None)
    assert maker(root, "train", "k") == record.id
    assert maker(root, "train", "other") == ""
    assert run_of(root, record.process) == later.id
    assert run_of(root, Process(1, "elsewhere", "")) == ""
