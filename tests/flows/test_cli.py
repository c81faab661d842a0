import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import engine.config
import tasks
from engine.errors import DataError
from engine.promotion.service import Service
from engine.runs import RunRecord
from engine.selection import Selection
from engine.sources import ModelSource
from engine.stage import Listener
from engine.store import Store
from flows import _run, cli
from flows._upkeep import size

ALL = ["download", "tokenize", "sft", "train", "evaluate"]


@pytest.fixture
def dpo(toy, monkeypatch, capsys):
    """The command over the toy stages: returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(tasks, "STAGES", toy.stages)
    monkeypatch.setattr(tasks, "SHARED", {"model": ModelSource})
    for name in cli._QUIET:
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def run(*words: str) -> tuple[int, str, str]:
        toy.ran.clear()
        profile = [] if words[0] == "--help" or "--profile" in words else ["--profile", "toy"]
        code = cli.main([*words, *profile])
        return code, *capsys.readouterr()

    return run


def error_of(dpo, *words: str) -> str:
    code, out, err = dpo(*words)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    return err


class TestRun:
    def test_makes_everything_and_ends_with_the_numbers_and_the_report(self, dpo, toy):
        code, out, err = dpo("run")
        assert (code, toy.ran) == (0, ALL)
        assert "held-out pairs put right" in out
        assert "98.0%" in out
        report = Path(out.splitlines()[-1].removeprefix("report: "))
        assert "completed" in report.read_text()
        assert "train      runs     never made" in err
        assert "train      made     in " in err

    def test_names_no_report_that_could_not_be_written(self, dpo, monkeypatch, caplog):
        def refuse(record):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("engine.reports.run.run_report", refuse)
        code, out, _ = dpo("run")
        assert code == 0
        assert "report:" not in out
        assert any("the report of run" in line for line in caplog.messages)

    def test_reuses_what_is_there(self, dpo, toy):
        dpo("run")
        code, out, err = dpo("run")
        assert (code, toy.ran) == (0, [])
        assert "evaluate   reused   nothing it depends on changed" in err
        assert "98.0%" in out

    def test_takes_overrides_and_selections(self, dpo, toy):
        dpo("run")
        dpo("run", "--set", "train.beta=0.2", "--set", "evaluate.labels.a=1", "--only", "train")
        assert toy.ran == ["train"]
        dpo("run", "--from", "sft", "--until", "train", "--force")
        assert toy.ran == ["sft", "train"]

    def test_prints_nothing_but_json_when_asked_whatever_the_stages_print(self, dpo, toy):
        toy.hooks["train"] = lambda ctx: (print("noise"), ctx.log.info("a word"))
        code, out, err = dpo("run", "--json")
        stages = json.loads(out)
        assert code == 0
        assert [each["stage"] for each in stages] == ALL
        assert set(stages[0]) == {"stage", "key", "action", "why", "path", "seconds"}
        assert all(Path(each["path"]).is_dir() and each["seconds"] is not None for each in stages)
        assert "noise" in err
        assert "dpo.train: a word" in err

    def test_that_fails_says_why_without_a_traceback_and_keeps_the_record(self, dpo, toy):
        def fail(ctx):
            raise DataError("the data is bad", fix="mend it")

        toy.hooks["train"] = fail
        code, out, err = dpo("run", "--json")
        assert code == 1
        assert [each["stage"] for each in json.loads(out)] == ["download", "tokenize", "sft"]
        assert err.endswith("error: the data is bad\n  fix: mend it\n")
        assert "Traceback" not in err
        assert "the data is bad" in dpo("report")[1]

    def test_shows_the_traceback_of_an_error_when_asked(self, dpo, toy, monkeypatch):
        monkeypatch.setenv("DPO_TRACEBACK", "1")
        code, _, err = dpo("run", "--set", "train.beta=0")
        assert code == 1
        assert "Traceback" in err
        assert "error: `train.beta` cannot be 0" in err

    def test_that_meets_a_bug_lets_it_through_and_keeps_the_record(self, dpo, toy):
        def fail(ctx):
            raise ZeroDivisionError("a bug")

        toy.hooks["train"] = fail
        with pytest.raises(ZeroDivisionError):
            dpo("run")
        assert "ZeroDivisionError: a bug" in dpo("report")[1]

    def test_that_runs_out_of_memory_says_what_to_lower(self, dpo, toy):
        def fail(ctx):
            raise MemoryError

        toy.hooks["train"] = fail
        assert "micro_batch_tokens" in error_of(dpo, "run")

    def test_that_is_interrupted_says_how_to_go_on_and_goes_on(self, dpo, toy):
        def interrupt(ctx):
            raise KeyboardInterrupt

        toy.hooks["train"] = interrupt
        code, _, err = dpo("run", "--set", "train.beta=0.2", "--until", "train")
        assert code == 130
        assert "go on with: dpo run --profile toy --until train --set train.beta=0.2\n" in err
        assert "Cancelled." in dpo("report")[1]
        toy.hooks.clear()
        assert "train      resumes  an earlier attempt" in dpo("run", "--set", "train.beta=0.2", "--until", "train")[2]

    def test_that_is_terminated_leaves_a_record_that_says_so(self, dpo, toy):
        toy.hooks["train"] = lambda ctx: os.kill(os.getpid(), signal.SIGTERM)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            dpo("run")
        assert stop.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == before
        assert "Cancelled." in dpo("report")[1]

    def test_in_a_terminal_shows_bars_that_are_gone_at_the_end(self, dpo, toy, monkeypatch):
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
            monkeypatch.setenv(name, value)

        def progress(ctx):
            ctx.progress(1, 0, loss=0.123)
            ctx.listener._bars.refresh()  # without waiting for their clock, which the stage would outrun

        toy.hooks["train"] = progress
        code, _, err = dpo("run")
        assert code == 0
        assert "loss 0.123" in err
        assert err.index("train") < err.index("evaluate")

    def test_with_a_wrong_stage_leaves_no_record(self, dpo, toy):
        assert "there is no stage `trian`; did you mean `train`?" in error_of(dpo, "run", "--only", "trian")
        assert not (toy.root / "artifacts" / "runs").exists()

    def test_with_a_missing_input_prints_the_command_that_makes_it(self, dpo):
        assert "fix: dpo run --profile toy --until download" in error_of(dpo, "run", "--only", "tokenize")


class TestStatus:
    def test_says_for_every_stage_what_would_happen_and_why_and_runs_nothing(self, dpo, toy):
        dpo("run")
        code, out, _ = dpo("status", "--set", "train.beta=0.2")
        assert (code, toy.ran) == (0, [])
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert list(lines) == ALL
        assert " reuse " in lines["sft"]
        assert lines["train"].endswith("  train.beta: 0.1 → 0.2")
        assert lines["evaluate"].endswith("  its input train will be made first")

    def test_as_json_has_null_where_nothing_is_known(self, dpo):
        stages = json.loads(dpo("status", "--json")[1])
        assert [each["action"] for each in stages] == ["run"] * 5
        assert (stages[0]["key"] is not None, stages[1]["key"], stages[1]["seconds"]) == (True, None, None)

    def test_refuses_a_wrong_key_by_naming_the_right_one(self, dpo):
        assert "did you mean `train.beta`?" in error_of(dpo, "status", "--set", "train.betta=1")
        assert "did you mean `toy`?" in error_of(dpo, "status", "--profile", "tooy")


class TestPath:
    def test_is_the_folder_that_the_configuration_resolves_to(self, dpo):
        dpo("run")
        folder = Path(dpo("path", "train")[1].strip())
        assert (folder / "out.txt").read_text() == "adapter 0.1"
        dpo("run", "--set", "train.beta=0.2")
        other = Path(dpo("path", "train", "--set", "train.beta=0.2", "--force")[1].strip())
        assert (other / "out.txt").read_text() == "adapter 0.2"
        assert [each["path"] for each in json.loads(dpo("path", "train", "--json")[1])] == [str(folder)]

    def test_of_what_is_not_sealed_is_an_error_with_the_command_that_seals_it(self, dpo):
        dpo("run", "--until", "sft")
        err = error_of(dpo, "path", "train")
        assert "there is no sealed artifact of train" in err
        assert "fix: dpo run --profile toy --until train\n" in err
        assert "a policy is given" in error_of(dpo, "path", "sft", "--set", "model.policy=a/b")

    def test_of_a_stage_that_does_not_exist_names_the_nearest(self, dpo):
        assert "did you mean `train`?" in error_of(dpo, "path", "trian")

    def test_with_a_selection_keeps_to_it(self, dpo):
        dpo("run")
        assert dpo("path", "sft", "--only", "train")[1].strip().endswith(Path(dpo("path", "sft")[1].strip()).name)


class TestReport:
    def test_is_the_latest_by_default_or_the_one_that_is_named(self, dpo, toy):
        dpo("run", "--until", "download")
        dpo("run")
        names = sorted(path.name for path in (toy.root / "artifacts" / "runs").iterdir())
        assert dpo("report")[1].startswith(f"# Run {names[-1]}")
        assert dpo("report", names[0])[1].startswith(f"# Run {names[0]}")
        assert Path(dpo("report", "--path")[1].strip()) == toy.root / "artifacts" / "runs" / names[-1] / "report.html"
        assert json.loads(dpo("report", "--json")[1])["id"] == names[-1]

    def test_against_another_run_tells_what_changed_since(self, dpo):
        dpo("run")
        dpo("run", "--set", "train.beta=0.2")
        out = dpo("report", "--against", "last")[1]
        assert "`train.beta`" in out
        assert Path(out.splitlines()[-1].removeprefix("with pictures: ")).is_file()

    def test_is_shown_in_a_browser_on_demand(self, dpo, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
        dpo("run")
        assert dpo("report", "--open")[:2] == (0, "")
        assert opened[0].endswith("report.html")

    def test_of_a_run_that_does_not_exist_names_the_latest_few(self, dpo):
        assert "there is no run to report yet" in error_of(dpo, "report")
        assert "there are none" in error_of(dpo, "report", "nope")
        dpo("run")
        assert "the latest: 2" in error_of(dpo, "report", "nope")


class TestWhy:
    def test_tells_every_difference_and_what_it_is_compared_with(self, dpo):
        dpo("run")
        run = Path(dpo("report", "--path")[1].strip()).parent.name
        long = "x" * 300
        out = dpo("why", "train", "--set", "train.beta=0.2", "--set", "train.learning_rate=1.0")[1]
        assert f"by run {run}" in out
        assert "  config.beta\n    was 0.1\n    is  0.2\n" in out
        assert "  config.learning_rate\n" in out
        out = dpo("why", "train", "--set", f"tokenize.template={long}")[1]
        assert out.startswith("train: run, its input tokenize, sft will be made first\ntokenize: run, ")
        assert f'is  "{long}"' in out

    def test_of_what_is_reused_says_when_and_by_which_run_it_was_made(self, dpo, toy):
        dpo("run")
        made = Path(dpo("report", "--path")[1].strip()).parent.name
        dpo("run")
        out = dpo("why", "train")[1]
        assert out.startswith("train: reuse, nothing it depends on changed\n  it is the sealed artifact ")
        assert f"by run {made}" in out
        dpo("run", "--set", "train.beta=0.2", "--only", "train")
        folder = Path(dpo("report", "--path")[1].strip()).parent
        (folder / "run.json").unlink()
        assert "by a run of which no record is left" in dpo("why", "train", "--set", "train.beta=0.2")[1]

    def test_of_an_interrupted_attempt_names_the_run_that_was(self, dpo, toy):
        def interrupt(ctx):
            raise KeyboardInterrupt

        toy.hooks["train"] = interrupt
        dpo("run")
        run = Path(dpo("report", "--path")[1].strip()).parent.name
        out = dpo("why", "train", "--set", "train.beta=0.2")[1]
        assert "compared with the interrupted attempt" in out
        assert f"by run {run}" in out
        assert "it is the interrupted attempt" in dpo("why", "train")[1]

    def test_as_json_has_everything(self, dpo):
        dpo("run")
        told = json.loads(dpo("why", "evaluate", "--json", "--set", "train.beta=0.2")[1])
        assert told["waits_for"] == ["train"]
        assert told["cause"]["why"] == "train.beta: 0.1 → 0.2"
        assert told["changes"] == [{"name": "config.beta", "old": 0.1, "new": 0.2}]
        assert told["nearest"]["kind"] == "sealed"
        told = json.loads(dpo("why", "sft", "--json", "--set", "model.policy=a/b")[1])
        assert (told["action"], told["nearest"], told["changes"]) == ("skip", None, [])

    def test_of_a_stage_that_does_not_exist_names_the_nearest(self, dpo):
        assert "did you mean `train`?" in error_of(dpo, "why", "trian")


class TestVerify:
    def test_prints_a_line_for_each_artifact_and_a_summary(self, dpo):
        dpo("run")
        code, out, _ = dpo("verify")
        lines = out.splitlines()
        assert code == 0
        assert [line.split()[0] for line in lines[:-1]] == ["ok"] * 5
        assert lines[-1].startswith("5 right (")
        assert lines[-1].endswith(", 0 broken")

    def test_of_something_broken_moves_it_says_where_and_exits_with_1(self, dpo, toy):
        dpo("run")
        folder = Path(dpo("path", "train")[1].strip())
        (folder / "extra").write_text("x")
        code, out, _ = dpo("verify", "train", "--keep")
        assert (code, len(out.splitlines())) == (1, 2)
        assert folder.is_dir()
        code, out, _ = dpo("verify")
        assert code == 1
        assert "extra was not sealed with it; moved to " in out
        assert out.endswith("4 right (" + out.rpartition("4 right (")[2])
        assert not folder.exists()
        assert dpo("verify")[0] == 0
        dpo("run")
        assert toy.ran == ["train"]

    def test_as_json_is_one_array(self, dpo):
        dpo("run")
        told = json.loads(dpo("verify", "sft", "--json")[1])
        assert [(each["name"].split("/")[0], each["problems"]) for each in told] == [("sft", [])]

    def test_of_a_stage_that_does_not_exist_names_the_nearest(self, dpo):
        assert "did you mean `train`?" in error_of(dpo, "verify", "trian")


class TestGc:
    def test_shows_what_would_go_and_removes_it_when_it_is_told_to(self, dpo, toy):
        dpo("run")
        dpo("run", "--set", "train.beta=0.2")
        assert dpo("gc")[1] == "nothing is there that nothing needs\n"
        out = dpo("gc", "--keep-runs", "1")[1]
        assert "no kept run reaches it" in out
        assert "2 would go, " in out
        assert dpo("status")[1].count(" reuse ") == 5
        code, out, _ = dpo("gc", "--keep-runs", "1", "--delete")
        assert code == 0
        assert out.splitlines()[-1].startswith("removed 2, ")
        assert "only its manifest is kept" in dpo("status")[1]
        err = error_of(dpo, "path", "train")
        assert "there is no sealed artifact of train" in err
        assert "fix: dpo run --profile toy --until train\n" in err
        assert "(its manifest is kept)" in dpo("why", "train")[1]
        assert dpo("run", "--until", "train")[0] == 0
        assert toy.ran == ["train"]
        assert dpo("path", "train")[0] == 0

    def test_says_which_run_is_under_way_that_keeps_it_from_removing_artifacts(self, dpo, toy):
        dpo("run")
        dpo("run", "--set", "train.beta=0.2")
        run = RunRecord.start(toy.settings(), Selection(), toy.root / "other").id
        line, summary = dpo("gc", "--keep-runs", "1", "--delete")[1].splitlines()
        assert line.startswith(f"run {run} is under way (process {os.getpid()} on ")
        assert line.endswith("until it is over, no artifact and no scores go")
        assert summary == "nothing is there that nothing needs"
        code, out, err = dpo("gc", "--keep-runs", "1", "--delete", "--json")
        assert (code, json.loads(out), err) == (0, [], f"{line}\n")

    def test_takes_no_line_of_a_status_for_more_than_one(self, dpo):
        dpo("run")
        (Path(dpo("path", "train")[1].strip()) / "manifest.json").write_text("{")
        changed = dpo("status", "--set", 'tokenize.template="a\\nb"')[1]
        assert [len(out.splitlines()) for out in (dpo("status")[1], changed)] == [5, 5]
        assert "plain → a ⏎ b" in changed

    def test_says_what_it_had_to_leave_and_exits_with_1(self, dpo, toy, monkeypatch):
        dpo("run")
        dpo("run", "--set", "train.beta=0.2")
        monkeypatch.setattr("flows._upkeep.remove", lambda waste, data, artifacts: "in use by process 7")
        code, out, _ = dpo("gc", "--keep-runs", "1", "--delete")
        assert code == 1
        assert out.count("left: in use by process 7") == 2
        told = json.loads(dpo("gc", "--keep-runs", "1", "--delete", "--json")[1])
        assert {(each["removed"], each["left"]) for each in told} == {(False, "in use by process 7")}

    @pytest.mark.parametrize("words", [["--older-than", "-1"], ["--keep-runs", "x"], ["--older-than", "1e9"]])
    def test_a_count_that_makes_no_sense_is_wrong_usage(self, words, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["gc", *words])
        assert stop.value.code == 2


class TestService:
    @pytest.fixture
    def promoted(self, toy) -> list[str]:
        """Two versions that were put into service."""
        store, keys = Store(toy.root / "artifacts"), ["a" * 16, "b" * 16]
        for key in keys:
            work = store.work("promote", key)
            (work / "handed_down.json").write_text(json.dumps({"candidate": key, "against": None, "stages": {}}))
            store.seal("promote", key, work, {"payload": {"inputs": {}}, "metrics": {}})
            Service(store.root, "toy").put(key, forced=True)
        return keys

    def test_says_what_is_in_service_and_where(self, dpo, promoted, toy):
        assert dpo("promoted")[1].startswith(f"version {promoted[1]} is in service for toy since ")
        assert json.loads(dpo("promoted", "--json")[1])["in_service"]["version"] == promoted[1]
        assert dpo("promoted", "--path")[1] == f"{(toy.root / 'artifacts' / 'promote' / promoted[1]).resolve()}\n"

    def test_goes_back_to_the_one_before_or_the_one_named(self, dpo, promoted):
        assert (
            dpo("rollback")[1] == f"rolled back: version {promoted[0]} is in service now, in place of {promoted[1]}\n"
        )
        assert dpo("rollback", "--to", promoted[1])[0] == 0
        assert "version zzz never was in service" in error_of(dpo, "rollback", "--to", "zzz")
        assert dpo("promoted")[1].count("rolled back") == 3

    def test_is_empty_before_the_first(self, dpo):
        assert dpo("promoted")[:2] == (0, "no model is in service yet for toy\n")
        assert "there is no model in service" in error_of(dpo, "rollback")
        assert "there is no model in service yet" in error_of(dpo, "promoted", "--path")

    def test_of_which_the_state_is_damaged_says_what_to_do(self, dpo, promoted, toy):
        (toy.root / "artifacts" / "promoted" / "toy" / "state.json").write_text("{")
        for words in (["promoted"], ["promoted", "--path"], ["rollback"]):
            err = error_of(dpo, *words)
            assert "cannot be told which model is in service" in err
            assert "put a copy of it back" in err

    @pytest.mark.parametrize("force", [[], ["--force"]])
    def test_takes_the_model_of_the_configuration_when_it_is_told_to(self, dpo, toy, monkeypatch, force):
        told = []
        monkeypatch.setattr("flows._promotion.put_in_service", lambda *given, **named: told.append((given, named)))
        assert dpo("promote", *force, "--set", "train.beta=0.2")[0] == 0
        ((stages, settings), named) = told[0]
        assert (stages, named) == (toy.stages, {"forced": bool(force), "as_json": False})
        assert settings.stages["train"].beta == 0.2

    def test_compares_with_what_is_named(self, dpo, toy, monkeypatch):
        told = []
        monkeypatch.setattr("flows._compare.show_comparison", lambda *given, **named: told.append((given[2], named)))
        assert dpo("compare", "a-run")[0] == 0
        assert dpo("compare", "a-run", "--limit", "3", "--json")[0] == 0
        assert told == [("a-run", {"as_json": False, "limit": 20}), ("a-run", {"as_json": True, "limit": 3})]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (1e16, "10000.0 TB")]
)
def test_sizes_are_for_people(count, shown):
    assert size(count) == shown


class TestConfig:
    def test_prints_a_profile_that_means_the_same(self, dpo, toy, tmp_path):
        code, out, _ = dpo("config", "--set", "train.learning_rate=5e-7", "--set", "tokenize.template=值 x")
        path = tmp_path / "again.toml"
        path.write_text(out)
        again = engine.config.load(str(path), [], toy.stages, {"model": ModelSource})
        assert code == 0
        assert again.stages["train"].learning_rate == 5e-7
        assert tomllib.loads(out)["tokenize"]["template"] == "值 x"
        assert tomllib.loads(out)["model"]["revision"] == "main"


class TestCommand:
    @pytest.mark.parametrize("words", [[], ["rnu"], ["run", "--beta", "3"], ["path"]])
    def test_wrong_usage_exits_with_2(self, words, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        assert "usage: dpo" in capsys.readouterr().err

    def test_a_full_disk_is_told_in_words_and_another_error_of_the_system_is_a_bug(self, dpo, monkeypatch):
        def fail(*words):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_run, "settings_of", fail)
        assert "No space left on device" in error_of(dpo, "config")
        assert "File name too long" in error_of(dpo, "report", "--set", f"runtime.artifacts={'a' * 300}")

        def bug(*words):
            raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr(_run, "settings_of", bug)
        with pytest.raises(OSError, match="Bad file"):
            dpo("config")

    def test_ctrl_c_anywhere_is_130(self, dpo, monkeypatch):
        def interrupt(*words):
            raise KeyboardInterrupt

        monkeypatch.setattr(_run, "settings_of", interrupt)
        assert dpo("config")[0] == 130

    def test_a_reader_that_stops_reading_is_no_crash(self):
        command = f"{sys.executable} -m flows.cli config --profile demo | head -c 1"
        module = "from flows.cli import main; import sys; sys.exit(main(['config']))"
        process = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'{sys.executable} -c "{module}" | head -c 1'],
            capture_output=True,
            text=True,
            cwd=Path(cli.__file__).parent.parent,
        )
        assert "Traceback" not in process.stderr, command

    def test_the_libraries_are_told_to_be_quiet_unless_the_user_said_otherwise(self, toy, monkeypatch):
        monkeypatch.setattr(tasks, "STAGES", toy.stages)
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
        cli.main(["config", "--profile", "toy"])
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_the_terminal_is_a_listener_that_other_code_may_replace():
    from flows._terminal import Terminal

    assert issubclass(Terminal, Listener)


RUN = """
import sys
from flows.cli import main
assert main({words}) == 0
heavy = sorted({{"torch", "transformers", "peft", "datasets", "tokenizers"}} & set(sys.modules))
assert not heavy, heavy
"""


def test_a_run_imports_nothing_heavy_before_a_stage_needs_it(tmp_path):
    places = (f"runtime.{name}='{tmp_path / name}'" for name in ("artifacts", "data"))
    settings = [word for key in ("download.embedded_pairs=5", *places) for word in ("--set", key)]
    words = ["run", "--until", "download", "--json", *settings]
    root = Path(cli.__file__).parents[1]
    for action in ("run", "reuse"):
        script = RUN.format(words=words)
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["action"] == action
