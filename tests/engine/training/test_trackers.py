import random
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from engine.training import trackers
from engine.training.patience import Patience
from engine.training.tracker_kinds import KINDS, Kind
from engine.training.trackers import trackers_of


class Fake(Kind):
    """A tracker that notes what it is told, and fails where it is asked to."""

    name, requires_logging_directory = "fake", False
    made: list["Fake"] = []  # noqa: RUF012

    def __init__(self, fails="", draws=False):
        super().__init__()
        self.fails, self.draws, self.heard = fails, draws, []
        Fake.made.append(self)

    @property
    def tracker(self):
        return self

    def hear(self, what, *more):
        self.heard.append((what, *more))
        if self.draws:
            random.random(), np.random.rand(), torch.rand(1)
            print("hello")
        if what == self.fails:
            raise RuntimeError(f"cannot {what}\nand a second line")

    def start(self):
        self.hear("start")

    def store_init_configuration(self, values):
        self.hear("config", values)

    def log(self, values, step=None, **_):
        self.hear("log", step, values)

    def finish(self):
        self.hear("finish", self.outcome)

    def let_go(self):
        self.heard.append(("let go",))


@pytest.fixture
def fakes(monkeypatch):
    """Puts a fake in place of trackers; each is asked to fail in the way that stands beside its name."""

    def put(**fails):
        Fake.made = []
        for name, where in fails.items():
            monkeypatch.setitem(KINDS, name, lambda told, step, where=where: Fake(where, draws=True))
        return Fake.made

    return put


@pytest.mark.parametrize("where", ["start", "config", "log", "finish"])
def test_trouble_anywhere_is_one_warning_and_the_other_tracker_hears_everything(told, fakes, where, attempt, warned):
    made = fakes(mlflow=where, wandb="")
    attempt("mlflow", "wandb")
    broken, other = made
    assert warned() == [f"from here on MLflow is told nothing of this training: cannot {where}"]
    assert [what for what, *_ in other.heard] == ["start", "config", "log", "log", "log", "finish", "let go"]
    assert [what for what, *_ in broken.heard].count(where) == 1
    assert broken.heard[-2:] == [("finish", "finished" if where == "finish" else "killed"), ("let go",)]
    assert len((told.logs / "steps.jsonl").read_text().splitlines()) == 3


def test_a_stop_that_comes_while_a_tracker_works_stops_the_run(fakes, monkeypatch, attempt):
    fakes(wandb="")
    monkeypatch.setattr(Fake, "log", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attempt("wandb")


@pytest.fixture
def stop():
    """Stops the main thread as a signal does, whatever it waits for."""

    def raises(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raises)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_a_stop_while_a_tracker_is_ended_leaves_it_behind_and_ends_the_others(fakes, attempt, monkeypatch, stop):
    made, wakes, woke = fakes(mlflow="", wandb=""), threading.Event(), []
    finish = Fake.finish

    def hang(self):
        if self is not made[0]:
            return finish(self)
        woke.append(threading.current_thread())
        stop()
        while not wakes.wait(0.01):
            pass
        return woke.append("went on")

    monkeypatch.setattr(Fake, "finish", hang)
    hook = threading.excepthook
    with pytest.raises(KeyboardInterrupt):
        attempt("mlflow", "wandb")
    assert made[0].heard[-1] == ("let go",)
    assert made[1].heard[-2:] == [("finish", "killed"), ("let go",)]
    assert threading.excepthook is hook
    wakes.set()
    woke[0].join(5)
    assert not woke[0].is_alive()
    assert len(woke) == 1


def test_no_tracker_moves_a_random_stream_or_prints_where_json_may_be_read(fakes, capsys, attempt):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    undisturbed = drawn()
    fakes(wandb="", mlflow="finish")
    seed()
    attempt("wandb", "mlflow")
    assert drawn() == undisturbed
    assert capsys.readouterr().out == ""


def test_a_training_that_takes_no_step_opens_no_run(fakes, attempt):
    made = fakes(wandb="")
    attempt("wandb", last=0)
    assert made == []


def test_the_run_inside_a_tracker_can_be_had_from_the_accelerator(told, fakes):
    made = fakes(wandb="")
    accelerator = Accelerator(cpu=True, log_with=trackers_of(["wandb"], told))
    accelerator.init_trackers("train")
    assert accelerator.get_tracker("wandb", unwrap=True) is None
    accelerator.log({"loss": 0.5}, step=1)
    assert accelerator.get_tracker("wandb", unwrap=True) is made[0]
    accelerator.end_training()


def test_a_warning_without_words_names_the_kind_of_trouble(fakes, monkeypatch, attempt, warned):
    fakes(wandb="")
    monkeypatch.setattr(Fake, "start", lambda self: (_ for _ in ()).throw(ValueError))
    attempt("wandb")
    assert warned()[0].endswith(": ValueError")


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [(None, "finished"), (ValueError(), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(), "killed")],
)
def test_a_tracker_hears_how_the_training_ended(fakes, attempt, ends, outcome):
    made = fakes(wandb="")
    with pytest.raises(type(ends)) if ends else warnings.catch_warnings():
        attempt("wandb", ends=ends)
    assert made[0].heard[-2:] == [("finish", outcome), ("let go",)]


@pytest.fixture
def short(monkeypatch):
    """Lets trackers hold a training up for a fifth of a second, and a stop for a tenth."""
    monkeypatch.setattr(trackers, "Patience", lambda: Patience(0.2, 0.0))
    monkeypatch.setattr(trackers, "_LONGEST_STOP_SECONDS", 0.1)


def test_the_import_of_a_library_is_never_broken_off_however_long_it_takes(fakes, attempt, monkeypatch, warned, short):
    threads = []
    monkeypatch.setattr(Fake, "load", lambda _: time.sleep(0.3) or threads.append(threading.current_thread()))
    made = fakes(mlflow="")
    attempt("mlflow")
    assert threads == [threading.main_thread()]
    assert [what for what, *_ in made[0].heard] == ["start", "config", "log", "log", "log", "finish", "let go"]
    assert warned() == []


def test_a_library_that_cannot_be_imported_is_one_warning_and_has_nothing_to_end(fakes, attempt, monkeypatch, warned):
    monkeypatch.setattr(Fake, "load", lambda _: (_ for _ in ()).throw(ImportError("no such library")))
    made = fakes(mlflow="")
    attempt("mlflow")
    assert made[0].heard == [("let go",)]
    assert warned() == ["from here on MLflow is told nothing of this training: no such library"]


@pytest.mark.parametrize("where", ["start", "store_init_configuration", "log"])
def test_a_tracker_that_never_answers_is_left_behind_and_draws_nothing_when_it_wakes(
    fakes, attempt, monkeypatch, warned, short, where
):
    wakes, drew = threading.Event(), []

    def hang(self, *_, **__):
        while not wakes.wait(0.01):
            pass
        drew.append(random.random())

    made = fakes(mlflow="", wandb="")
    monkeypatch.setattr(Fake, where, lambda self, *a, **k: hang(self) if self is made[0] else None)
    filters, began = list(warnings.filters), time.monotonic()
    attempt("mlflow", "wandb")
    assert time.monotonic() - began < 5
    assert warned() == [
        "from here on MLflow is told nothing of this training: it held the training up for 0 seconds in all"
    ]
    assert made[0].heard[-1] == ("let go",)
    assert made[1].heard[-2:] == [("finish", "finished"), ("let go",)]
    assert warnings.filters == filters
    wakes.set()
    for thread in threading.enumerate():
        if thread.name == "tracker mlflow":
            thread.join(5)
            assert not thread.is_alive()
    assert drew == []


def test_a_tracker_that_is_slow_at_each_step_is_told_no_more_of_them_once_that_has_cost_enough(
    fakes, attempt, monkeypatch, warned, short
):
    told = []
    monkeypatch.setattr(Fake, "log", lambda *_, **__: told.append(1) or time.sleep(0.07))
    fakes(mlflow="")
    attempt("mlflow", last=50)
    assert len(told) in (1, 2, 3)
    assert len(warned()) == 1


@pytest.mark.usefixtures("untraced")
def test_a_stop_waits_only_so_long_for_what_a_tracker_is_told(fakes, attempt, monkeypatch, warned, short):
    fakes(mlflow="")
    monkeypatch.setattr(Fake, "finish", lambda self: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        attempt("mlflow", ends=KeyboardInterrupt())
    assert time.monotonic() - began < 2
    assert "not done within" in warned()[0]


def test_all_that_a_tracker_is_told_is_told_in_one_thread(fakes, attempt, monkeypatch):
    threads = []
    hear = Fake.hear
    monkeypatch.setattr(Fake, "hear", lambda *given: threads.append(threading.current_thread()) or hear(*given))
    fakes(mlflow="")
    attempt("mlflow")
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()
