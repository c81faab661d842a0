import json
import logging
from pathlib import Path

import pytest

import engine.runs
from engine.errors import StoreError
from engine.pipeline import Selection
from engine.runs import RunRecord, all_runs, latest
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


def test_the_ids_of_runs_sort_by_time_and_are_never_the_same(toy, monkeypatch):
    monkeypatch.setattr(engine.runs.time, "strftime", lambda form: "20260102-030405" if "-%H" in form else "now")
    assert [started(toy).id for _ in range(3)] == [
        "20260102-030405-toy",
        "20260102-030405-toy-02",
        "20260102-030405-toy-03",
    ]
    assert latest(toy.root / "artifacts").id == "20260102-030405-toy-03"


def test_a_profile_given_by_its_path_gives_a_name_that_is_no_path(toy, tmp_path):
    path = tmp_path / "my own profile.toml"
    path.write_text("")
    settings = engine.config.load(str(path), [], toy.stages, {})
    record = RunRecord.start(settings, Selection(), tmp_path)
    assert record.folder.parent == tmp_path / "runs"
    assert record.id.endswith("-my_own_profile")


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


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_finished_run_says_how_it_ended_and_leaves_a_report(record, state):
    record.finish(state, "some error")
    kept = RunRecord.load(record.folder)
    assert (kept.state, kept.error, kept.seconds is not None) == (state, "some error", True)
    assert (record.folder / "report.md").read_text().startswith(f"# Run {record.id}".replace("_", r"\_"))


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
    def taken(self: Path, *, parents: bool) -> None:
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", taken)
    assert started(toy).id.endswith("-toy-99")
