import json
import logging
import signal
import subprocess
import threading

import pytest

import dpo_pipeline as dpo
from engine.errors import ConfigError, MissingInputError, PipelineError


def test_a_run_of_a_part_tells_what_it_did_and_is_found_again(folder, capsys):
    wanted = {"download.embedded_pairs": 12}
    run = dpo.run("demo", wanted, until="download")
    assert (run.state, run.decisions["download"].action) == ("completed", "run")
    assert run.metrics["download"]["pairs"] == 12
    assert "download   made" in capsys.readouterr().err
    again = dpo.run("demo", wanted, only="download")
    assert again.decisions["download"].action == "reuse"
    assert [each.id for each in dpo.runs("demo")] == [again.id, run.id]
    assert dpo.run("demo", wanted, since="download", until="download", force=True).decisions["download"].action == "run"


def test_status_says_what_would_run_and_runs_nothing(folder):
    found = dpo.status("demo", {"download.embedded_pairs": 12}, until="tokenize")
    assert [each.action for each in found.values()][:2] == ["run", "run"]
    assert dpo.runs("demo") == []
    assert not (folder / "artifacts").exists()


def test_a_run_that_fails_raises_the_stages_error_and_leaves_its_record(folder):
    with pytest.raises(PipelineError) as error:
        dpo.run("demo", {"download.embedded_pairs": 0, "download.files": "mine.jsonl"}, until="download")
    [failed] = dpo.runs("demo")
    assert failed.state == "failed"
    assert failed.record.error == str(error.value)


def test_a_run_whose_process_is_gone_is_told_as_crashed(folder):
    run = dpo.run("demo", {"download.embedded_pairs": 12}, only="download")
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    path = run.record.folder / "run.json"
    kept = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(kept | {"state": "running", "pid": gone.pid}), "utf-8")
    assert [each.state for each in dpo.runs("demo")] == ["crashed"]


def test_a_wrong_wish_leaves_no_record(folder):
    with pytest.raises(ConfigError):
        dpo.run("demo", {"train.beta": -1})
    with pytest.raises(ConfigError, match="did you mean `train`"):
        dpo.run("demo", until="trian")
    with pytest.raises(ConfigError):
        dpo.status("demo", until="trian")
    assert dpo.runs("demo") == []


def test_it_runs_in_a_thread_and_leaves_the_process_as_it_was(folder):
    before = signal.getsignal(signal.SIGTERM)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(dpo.run("demo", {"download.embedded_pairs": 12}, only="download"))
    )
    thread.start()
    thread.join()
    assert found[0].state == "completed"
    dpo.run("demo", {"download.embedded_pairs": 12}, only="download")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_level_that_somebody_chose_for_the_logs_stays(folder):
    log = logging.getLogger("dpo")
    before = log.level
    try:
        for chosen, then in ((logging.ERROR, logging.ERROR), (logging.NOTSET, logging.INFO)):
            log.setLevel(chosen)
            dpo.run("demo", {"download.embedded_pairs": 12}, only="download")
            assert log.level == then
    finally:
        log.setLevel(before)


def test_a_profile_without_a_model_in_service_says_how_one_is_made(folder):
    for ask in (dpo.load_model, dpo.chat):
        with pytest.raises(MissingInputError, match="no model in service yet") as error:
            ask("demo", overrides={"train.beta": 0.2})
        assert "dpo run --profile demo --set train.beta=0.2" in error.value.fix
