import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import MLflowTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.training import mlflow_store, trackers
from engine.training.patience import Patience
from engine.training.trackers import Guarded

# Two runs, of which the first is given up at once; which of them were, and what was imported by the tracker's thread.
GIVEN_UP = """
import sys
from pathlib import Path
from engine.training import tracker_kinds
from engine.training.patience import Patience
from engine.training.tracker_kinds import Told
from engine.training.trackers import Guarded

store, loaded, load = Path(sys.argv[1]), [], tracker_kinds._Mlflow.load
tracker_kinds._Mlflow.load = lambda self: load(self) or loaded.append(set(sys.modules))

def over(stage, patience):
    tracker = Guarded("mlflow", Told("project", stage, stage, stage, {}, store, store))
    tracker._patience = patience
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    return tracker._over

given_up = over("sft", Patience(0.001, 0.0)), over("train", Patience())
late = {name.partition(".")[0] for name in set(sys.modules) - loaded[0]}
print(*given_up)
print(sorted(late - sys.stdlib_module_names - {"mlflow"}))
"""


def scalars(told, name):
    found = EventAccumulator(str(told.logs / told.stage))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


class TestTensorBoard:
    def test_its_events_lie_in_the_logs_under_the_names_of_the_steps(self, told, attempt):
        attempt("tensorboard")
        assert scalars(told, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
        assert [step for step, _ in scalars(told, "rewards/margins")] == [1, 2, 3]
        assert [value for _, value in scalars(told, "tokens_per_second")] == [9.0] * 3
        assert {path.name for path in told.logs.iterdir()} == {"train", "steps.jsonl"}
        assert all(path.name.startswith("events.") for path in (told.logs / "train").iterdir())

    def test_a_run_that_was_resumed_shows_every_step_once(self, told, attempt):
        attempt("tensorboard", last=4)
        attempt("tensorboard", first=3, last=5)
        assert [step for step, _ in scalars(told, "loss")] == [1, 2, 3, 4, 5]

    def test_a_full_disk_is_one_warning_and_no_traceback(self, told, monkeypatch, capfd, attempt, warned):
        from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

        def refused(*_):
            raise OSError(28, "No space left on device", b"logs/events")

        monkeypatch.setattr(LocalFileSystem, "_write", refused)
        hook = threading.excepthook
        attempt("tensorboard")
        assert len((told.logs / "steps.jsonl").read_text().splitlines()) == 3
        assert warned() == ["from here on TensorBoard is told nothing of this training: No space left on device"]
        assert "Traceback" not in capfd.readouterr().err
        assert threading.excepthook is hook


class TestMlflowsEnvironment:
    @pytest.fixture
    def opened(self, monkeypatch):
        """The environment in which runs were opened, without MLflow; whether they were opened in the local store."""
        seen = []

        @contextmanager
        def prepared(folder):
            seen.append(folder)
            yield

        def start(tracker):
            seen.append({name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")})
            raise ConnectionError("nobody is there")

        monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(end_run=lambda status: None))
        monkeypatch.setattr(mlflow_store, "prepared", prepared)
        monkeypatch.setattr(MLflowTracker, "start", start)
        return seen

    def test_it_waits_for_seconds_tells_its_makers_nothing_and_keeps_to_the_artifacts(self, told, opened, attempt):
        attempt("mlflow")
        folder = (told.store / "mlflow").absolute()
        assert opened == [
            folder,
            {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
                "MLFLOW_LOGGING_LEVEL": "WARNING",
                "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            },
        ]
        assert not [name for name in os.environ if name.startswith("MLFLOW_")]

    def test_what_the_user_set_stays_and_a_server_needs_no_store_here(self, told, opened, attempt, monkeypatch):
        given = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_TIMEOUT": "99"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        attempt("mlflow")
        [seen] = opened
        assert given.items() <= seen.items()
        assert seen["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
        assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == given
        assert not told.store.exists()


@pytest.mark.slow
class TestMlflow:
    def runs(self, told):
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{(told.store / 'mlflow' / 'mlflow.db').absolute()}")
        experiment = client.get_experiment_by_name(told.project)
        return client, client.search_runs([experiment.experiment_id])

    def test_a_run_with_its_name_config_and_numbers_lies_below_the_artifacts_and_goes_on_after_a_kill(
        self, told, tmp_path, monkeypatch, capfd, attempt
    ):
        monkeypatch.chdir(tmp_path)
        attempt("mlflow", last=3)
        attempt("mlflow", first=3, last=4)
        client, [run] = self.runs(told)
        assert run.info.run_name == told.name
        assert run.info.status == "FINISHED"
        assert run.data.params == {name: str(value) for name, value in told.config.items()}
        steps = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(set(steps)) == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
        assert client.get_metric_history(run.info.run_id, "rewards/chosen")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "logs"]
        assert not [name for name in os.environ if name.startswith("MLFLOW_")]
        said = capfd.readouterr()
        assert ("INFO" in said.err, "Warning" in said.err, said.out) == (False, False, "")

        attempt("mlflow", last=1)  # made anew by force: a run of its own
        assert len(self.runs(told)[1]) == 2

    def test_a_training_that_failed_or_was_stopped_says_so(self, told, attempt):
        for ends in (ValueError(), KeyboardInterrupt()):
            with pytest.raises(type(ends)):
                attempt("mlflow", ends=ends)
        assert sorted(run.info.status for run in self.runs(told)[1]) == ["FAILED", "KILLED"]

    @pytest.mark.parametrize("trouble", ["an error", "a call that does not return"])
    def test_a_run_that_is_told_no_more_while_the_training_goes_on_was_killed(self, told, monkeypatch, warned, trouble):
        monkeypatch.setattr(trackers, "_LONGEST_STOP_SECONDS", 20.0)
        tracker, wakes = Guarded("mlflow", told), threading.Event()
        tracker.log({"loss": 1.0}, step=1)
        monkeypatch.setattr(tracker, "_patience", Patience(0.2, 0.0))
        monkeypatch.setattr(MLflowTracker, "log", lambda *_, **__: 1 / 0 if trouble == "an error" else wakes.wait(60))
        tracker.log({"loss": 2.0}, step=2)
        wakes.set()
        assert [run.info.status for run in self.runs(told)[1]] == ["KILLED"]
        tracker.finish()
        assert [run.info.status for run in self.runs(told)[1]] == ["KILLED"]
        assert len(warned()) == 1

    def test_a_run_that_is_given_up_at_once_leaves_the_library_whole_for_the_next(self, told):
        done = subprocess.run([sys.executable, "-c", GIVEN_UP, told.store], capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines() == ["True False", "[]"], done.stderr

    def test_a_server_that_is_away_is_one_warning_after_seconds(self, told, monkeypatch, attempt, warned):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        began = time.monotonic()
        attempt("mlflow", "tensorboard")
        assert time.monotonic() - began < 30
        assert len(warned()) == 1
        assert "MLflow" in warned()[0]
        assert len(scalars(told, "loss")) == 3
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"


@pytest.fixture
def library(monkeypatch):
    """A library that notes how its run is opened, in the place of wandb or trackio."""

    def put(name):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.heard = []
        run = SimpleNamespace(
            log=lambda values, step: module.heard.append((step, values)),
            finish=lambda **given: module.heard.append(given.get("exit_code", "finish")),
        )
        module.init = lambda **given: module.heard.append(given) or run
        module.finish = run.finish
        module.config = SimpleNamespace(update=lambda values, **_: module.heard.append(values))
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


class TestWandb:
    def test_a_run_is_named_and_grouped_and_gets_the_config_the_steps_and_an_end(self, told, library, attempt):
        heard = library("wandb")
        attempt("wandb", last=2)
        opened, config, *steps, end = heard.heard
        assert (opened["project"], opened["name"], opened["group"]) == ("project", told.name, told.run)
        assert opened["dir"] == str(told.store / "wandb")
        assert (told.store / "wandb").is_dir()
        assert config == told.config
        assert [(step, values["loss"]) for step, values in steps] == [(1, 0.5), (2, 1.0)]
        assert end == 0

    @pytest.mark.parametrize("ends", [ValueError(), KeyboardInterrupt()])
    def test_a_run_that_failed_or_was_stopped_ends_as_crashed(self, library, attempt, ends):
        heard = library("wandb")
        with pytest.raises(type(ends)):
            attempt("wandb", ends=ends)
        assert heard.heard[-1] == 1

    def test_another_attempt_says_from_which_step(self, told, library, attempt):
        heard = library("wandb")
        attempt("wandb", first=7, last=7)
        assert heard.heard[0]["name"] == f"{told.name} from step 7"

    @pytest.mark.parametrize(
        ("given", "mode"),
        [
            ({}, "offline"),
            ({"WANDB_MODE": "online"}, "offline"),
            ({"WANDB_MODE": "disabled"}, None),
            ({"WANDB_API_KEY": "k"}, None),
            ({"netrc": "machine api.wandb.ai\n  login user\n  password k\n"}, None),
            ({"netrc": "machine elsewhere\n  login user\n  password k\n"}, "offline"),
            ({"netrc": "what is this?"}, "offline"),
        ],
    )
    def test_without_credentials_it_asks_nobody_and_needs_no_network(
        self, told, library, monkeypatch, tmp_path, given, mode, attempt
    ):
        for name, value in given.items():
            (tmp_path / "netrc").write_text(value) if name == "netrc" else monkeypatch.setenv(name, value)
        heard = library("wandb")
        attempt("wandb", last=1)
        assert heard.heard[0].get("mode") == mode

    @pytest.mark.usefixtures("untraced")
    def test_an_upload_that_does_not_end_is_left_behind(self, library, monkeypatch, attempt, warned):
        module = library("wandb")
        hangs, given = threading.Event(), module.init
        monkeypatch.setattr(trackers, "_LONGEST_END_SECONDS", 0.05)
        module.init = lambda **settings: SimpleNamespace(log=given().log, finish=lambda **_: hangs.wait(60))
        began = time.monotonic()
        attempt("wandb", last=1)
        hangs.set()
        assert time.monotonic() - began < 5
        assert "Weights & Biases" in warned()[0]
        assert "not done within" in warned()[0]

    def test_what_fails_while_it_ends_is_told_too(self, library, attempt, warned):
        module = library("wandb")
        given = module.init
        module.init = lambda **settings: SimpleNamespace(log=given().log, finish=lambda **_: 1 / 0)
        attempt("wandb", last=1)
        assert "division by zero" in warned()[0]


def test_trackio_goes_on_with_its_run_and_is_ended_so_that_nothing_is_left_for_the_exit(told, library, attempt):
    heard = library("trackio")
    attempt("trackio", last=1)
    attempt("trackio", first=2, last=2)
    opened = [each for each in heard.heard if isinstance(each, dict) and "resume" in each]
    assert [each["resume"] for each in opened] == ["never", "allow"]
    assert {each["name"] for each in opened} == {told.name}
    assert heard.heard.count("finish") == 2
