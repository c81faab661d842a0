"""A run that is stopped or killed anywhere, and run again, ends with the same bytes as one that was left alone."""

import json
import logging
import random
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook

from engine.dpo.losses import WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.models.forward import Forward
from engine.models.passes import Passes
from engine.preferences.batching import BatchPlan
from engine.training import checkpoint
from engine.training.loop import Contribution, Optimization
from engine.training.objectives import SftObjective
from engine.training.run import Upkeep, train

WATCHED = Path(checkpoint.__file__).parent
PLAN = BatchPlan(rows=7, batch_size=3, epochs=2, seed=3)  # 6 steps, the last of an epoch with one row

PROCESSES = random.Random(0)


class Killed(Exception):  # noqa: N818 — it stands for no error
    """Stands for a kill: an error after which nothing is kept that was not kept before."""


class AtLine:
    """Acts when the n-th line of the training code runs; a context manager.

    Attributes:
        lines: how many have run.
    """

    def __init__(self, place=0, act=lambda: None):
        self.lines, self._place, self._act = 0, place, act

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, _):
        if Path(frame.f_code.co_filename).parent != WATCHED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._place:
                self._act()
        return self._trace


class Noisy:
    """Distance of one weight from the step's targets, under noise from every random stream there is."""

    def contributions(self, model, rows):
        for part in (rows[:2], rows[2:]):
            if part:
                noise = torch.randn(1) + random.gauss() + np.random.standard_normal()
                loss = ((model.weight - torch.tensor(part) + noise) ** 2).sum() / len(rows)
                yield Contribution(part, float(loss.detach()), loss, {"seen": len(part) / len(rows)})

    def describe(self, rows):
        return str(rows)

    def tokens(self, rows):
        return len(rows)


class One(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))


@dataclass
class Ended:
    """What a run left, and how often the weights moved in all its attempts."""

    weight: torch.Tensor
    means: dict
    journal: bytes
    moves: int


class Small:
    """Attempts at one small run in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.moves = folder, 0

    def attempt(self, seconds=1e9, steps=0):
        for start in (torch.manual_seed, random.seed, np.random.seed):  # another process has other streams
            start(PROCESSES.randrange(2**32))
        model = One()
        upkeep = Upkeep(
            "train", self.folder, logging.getLogger("dpo.train"), lambda *_: None,
            checkpoint_seconds=seconds, checkpoint_every_steps=steps,
        )  # fmt: skip
        how = Optimization(learning_rate=0.1, max_grad_norm=1e9)
        moved = register_optimizer_step_post_hook(self._moved)
        try:
            trained = train(model, Noisy(), PLAN, how, Accelerator(cpu=True), upkeep)
        finally:
            moved.remove()
        lines = (self.folder / "logs" / "steps.jsonl").read_bytes()
        return Ended(model.weight.detach(), trained.means, lines, self.moves)

    def _moved(self, *_):
        self.moves += 1


def same(one, other):
    return one.weight.equal(other.weight) and one.means == other.means and one.journal == other.journal


def stop():
    signal.raise_signal(signal.SIGINT)


def kill():
    raise Killed


def lines_of(folder, **intervals):
    with AtLine() as seen:
        whole = Small(folder).attempt(**intervals)
    return whole, seen.lines


EVERY = {"steps": 1}
SELDOM = {"seconds": 1e9}
SHARES = [pytest.param(11, marks=pytest.mark.slow), 331]  # of all lines one in so many


@pytest.mark.parametrize("intervals", [EVERY, SELDOM], ids=["often", "seldom"])
@pytest.mark.parametrize("share", SHARES)
def test_a_stop_at_any_line_loses_no_step_and_changes_no_bit(tmp_path, intervals, share):
    whole, lines = lines_of(tmp_path / "whole", **intervals)
    assert lines > 600
    for place in range(share // 2, lines + 1, share):
        run = Small(tmp_path / str(place))
        with pytest.raises(KeyboardInterrupt), AtLine(place, stop):
            run.attempt(**intervals)
        assert same(run.attempt(), whole), place
        assert run.moves == PLAN.steps, place


@pytest.mark.parametrize("share", SHARES)
def test_a_kill_at_any_line_loses_what_no_checkpoint_held_and_changes_no_bit(tmp_path, share):
    whole, lines = lines_of(tmp_path / "whole", **EVERY)
    for place in range(share // 2, lines + 1, share):
        run = Small(tmp_path / str(place))
        with pytest.raises(Killed), AtLine(place, kill):
            run.attempt(**EVERY)
        assert same(run.attempt(**EVERY), whole), place
        assert run.moves <= PLAN.steps + 1, place  # the step that no checkpoint held is taken again


@pytest.mark.parametrize("act", [stop, kill])
@pytest.mark.parametrize("share", SHARES)
def test_a_run_that_goes_on_can_be_stopped_or_killed_anywhere_as_well(tmp_path, act, share):
    def begun(folder):
        run = Small(folder)
        whole, lines = lines_of(tmp_path / "whole", **EVERY)
        with pytest.raises(KeyboardInterrupt), AtLine(lines // 2, stop):
            run.attempt(**EVERY)
        return run, whole

    run, whole = begun(tmp_path / "first")
    with AtLine() as seen:
        run.attempt(**EVERY)
    for place in range(share // 2, seen.lines + 1, share):
        run, _ = begun(tmp_path / str(place))
        with pytest.raises((KeyboardInterrupt, Killed)), AtLine(place, act):
            run.attempt(**EVERY)
        assert same(run.attempt(**EVERY), whole), place


def test_the_random_streams_decide_the_result_so_the_tests_above_tell(tmp_path, monkeypatch):
    whole = Small(tmp_path / "whole").attempt()
    for stream in ("torch.set_rng_state", "random.setstate", "numpy.random.set_state"):
        run = Small(tmp_path / stream)
        with pytest.raises(KeyboardInterrupt), AtLine(400, stop):
            run.attempt()
        with monkeypatch.context() as patched:
            patched.setattr(stream, lambda *_: None)
            assert not same(run.attempt(), whole), stream


def test_what_was_lost_of_the_journal_changes_no_mean(tmp_path, caplog):
    whole, lines = lines_of(tmp_path / "whole")
    run = Small(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt), AtLine(lines // 2, stop):
        run.attempt()
    (run.folder / "logs" / "steps.jsonl").unlink()  # as a power cut may leave it
    again = run.attempt()
    assert again.means == whole.means
    assert "lacks" in caplog.text


def stopped_at(run, step, **others):
    with pytest.raises(KeyboardInterrupt):
        run.go(dies_after=step, by=KeyboardInterrupt, **others)


@dataclass(frozen=True)
class Ranked:
    """Sigmoid losses in which every margin counts by its rank among all margins of the step."""

    preference: bool = True
    coupled: bool = True
    reference_free: bool = False

    def __call__(self, logps, step):
        margins = logps.logratio_margin.sort().values
        weights = torch.arange(len(margins), 0, -1, dtype=margins.dtype) / len(margins)
        return -torch.nn.functional.logsigmoid(weights * margins).sum() / step.pairs


def coupled(run):
    run.objective = replace(run.objective, loss=WeightedSum([(1.0, Ranked()), (1.0, Sigmoid(0.1))]))
    return run


def half(run):
    """The policy in float16 under an adapter in float32, so that the loss is scaled."""
    for value in run.model.parameters():
        if not value.requires_grad:
            value.data = value.data.half()
    return run


def sft(run):
    rows = [pair.chosen for pair in run.objective.pairs]
    run.objective = SftObjective(rows, Passes(Forward("packed", "fused"), 20, 0))
    return run


def deterministic(run):
    torch.use_deterministic_algorithms(True)
    return run


def in_layout(layout):
    def make(run):
        passes = Passes(Forward(layout, "fused"), 45, 0)
        run.objective = replace(run.objective, passes=passes)
        return deterministic(run)

    make.__name__ = layout
    return make


@pytest.fixture(autouse=True)
def any_algorithms():
    yield
    torch.use_deterministic_algorithms(False)


KINDS = [coupled, half, sft, *map(in_layout, ("packed", "shared", "padded"))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("step", [1, 4, 7])
def test_with_dropout_every_kind_of_training_goes_on_to_the_same_bytes(make_run, kind, step):
    whole = kind(make_run("whole", dropout=0.3))
    trained = whole.go(checkpoint_seconds=1e9)
    stopped_at(kind(make_run("broken", dropout=0.3)), step, checkpoint_seconds=1e9)
    resumed = kind(make_run("broken", dropout=0.3))
    assert resumed.go(checkpoint_seconds=1e9).means == trained.means
    weights = resumed.weights()
    assert all(value.equal(weights[name]) for name, value in whole.weights().items())


def test_float16_scales_its_loss_so_the_test_above_has_a_scale_to_keep(make_run):
    run = half(make_run())
    stopped_at(run, 2)
    [newest] = sorted((run.work / ".checkpoints").iterdir())[-1:]
    assert json.loads((newest / "state.json").read_text())["scaler"]["scale"] > 1


def test_how_often_it_logs_and_writes_checkpoints_changes_no_bit(make_run):
    whole = make_run("whole")
    whole.go(checkpoint_seconds=1e9)
    stopped_at(make_run("broken"), 2, checkpoint_seconds=1e9, log_every_steps=1)
    stopped_at(make_run("broken"), 5, checkpoint_seconds=0.0, log_every_steps=3)
    resumed = make_run("broken")
    resumed.go(checkpoint_seconds=1e9, checkpoint_every_steps=2, log_every_steps=7)
    assert all(value.equal(resumed.weights()[name]) for name, value in whole.weights().items())


@pytest.mark.parametrize("other", [{"reference": "b"}, {"reference": "a", "plan": 1}])
def test_a_checkpoint_against_another_reference_is_not_gone_on_from(make_run, caplog, other):
    caplog.set_level(logging.WARNING, "dpo")
    stopped_at(make_run("work"), 3, identity={"reference": "a"})
    again, fresh = make_run("work"), make_run("fresh")
    again.go(identity=other)
    fresh.go()
    assert "is of another run" in caplog.text
    assert [record.step for record in again.records] == list(range(1, 9))
    assert all(value.equal(again.weights()[name]) for name, value in fresh.weights().items())
