"""One training run as sft and train share it: checkpoints, the journal, progress, and what it amounted to."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from engine.preferences.batching import BatchPlan
from engine.training.checkpoint import Checkpoints
from engine.training.journal import Journal
from engine.training.listening import StepRecord, Watcher
from engine.training.loop import Objective, Optimization, Trainer
from engine.training.resources import Resources
from engine.training.state import TrainingState


@dataclass(frozen=True)
class Upkeep:
    """What is kept and told while a run goes on. None of it changes the result.

    Attributes:
        work: the stage's work folder; checkpoints and logs of an interrupted attempt are found there.
        progress: told (steps done, steps in all, numbers worth seeing: `loss`, `margin`, `tokens/s`).
        checkpoint_every_steps: 0 for none but by time.
        identity, environment: what the run is, and what its bits depend on besides, as JSON-like values; see
            `Checkpoints`.
    """

    name: str
    work: Path
    log: logging.Logger
    progress: Callable[[int, int, dict[str, float]], None]
    checkpoint_seconds: float = 120.0
    checkpoints_kept: int = 2
    log_every_steps: int = 10
    checkpoint_every_steps: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's own; what was settled before the first step is told to them, and by them."""
        return Checkpoints(self.work / ".checkpoints", self.checkpoints_kept, self.identity, self.environment)


@dataclass(frozen=True)
class Trained:
    """What a run amounted to.

    Attributes:
        means: every number of the steps, as a mean over the last tenth of the plan's; empty where it ended before.
        steps: optimizer steps of the whole run that were taken.
        epochs: how often the rows were passed over in them.
        highest_rate: the highest learning rate among them.
        rows_per_second: of this attempt; a resumed one counts its own rows only.
        resources: of the whole run, as far as they are known: `tokens`, `tokens_per_second`, `peak_memory_bytes`.
    """

    means: dict[str, float]
    steps: int
    epochs: float
    highest_rate: float
    rows_per_second: float
    resources: dict[str, float] = field(default_factory=dict)


def train(
    model: torch.nn.Module,
    objective: Objective,
    plan: BatchPlan,
    how: Optimization,
    accelerator: Accelerator,
    upkeep: Upkeep,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    save: Callable[[], None] = lambda: None,
    watcher: Watcher | None = None,
) -> Trained:
    """Trains `model` in place over the whole plan, from the newest checkpoint in the work folder if there is one.

    Args:
        save: writes what was trained; only afterwards are the checkpoints put aside.
        watcher: sees every step, and may end the run before its plan does.

    Raises:
        NumericsError: a loss or gradient is not finite.
        StoreError: a checkpoint cannot be written or read.
    """
    torch.set_grad_enabled(True)  # a stop on the way out of `torch.no_grad` leaves it off in this process
    began, first, done, seconds = time.monotonic(), 0, 0, 0.0
    watcher = watcher or Watcher()
    resources = Resources(upkeep.work / "logs", accelerator.device)

    def sync() -> None:
        journal.sync()
        resources.sync()

    with Journal(upkeep.work / "logs", accelerator, upkeep.name) as journal:

        def started(state: TrainingState) -> None:
            nonlocal first, done
            first = done = state.step
            journal.begin(state.told)
            if state.step:
                upkeep.log.info("going on from the checkpoint at step %d of %d", state.step, plan.steps)
            watcher.begin(state, journal.lines)

        def ended() -> None:
            nonlocal seconds
            seconds = max(time.monotonic() - began, 1e-9)
            watcher.end()
            save()

        def stepped(record: StepRecord) -> None:
            nonlocal done
            done = record.step
            if record.rows is None or record.seconds is None:
                taken = resources.of(record.step)
            else:
                taken = resources.add(record.step, record.seconds, objective.tokens(record.rows))
            journal.add(record, taken)
            upkeep.progress(record.step, record.steps, _seen(record.numbers) | resources.pace)
            if record.step % upkeep.log_every_steps == 0 or record.step == record.steps:
                upkeep.log.info("step %d/%d: %s", record.step, record.steps, _line(record.numbers))
            on_step(record)
            watcher.step(record)

        trainer = Trainer(
            model,
            objective,
            plan,
            how,
            accelerator,
            upkeep.checkpoints,
            stepped,
            upkeep.checkpoint_seconds,
            upkeep.checkpoint_every_steps,
            before_save=sync,
            watcher=watcher,
        )
        means = trainer.run(started, ended)
    rows = plan.rows * plan.epochs * (done - first) / plan.steps
    pace = round(rows / seconds, 2)
    epochs, rate = done / plan.steps_per_epoch, how.highest_rate(done, plan.steps)
    return Trained(means, done, epochs, rate, pace, resources.totals(done))


def _seen(numbers: Mapping[str, float]) -> dict[str, float]:
    shown = {"loss": "loss", "rewards/margins": "margin"}
    return {short: numbers[name] for name, short in shown.items() if name in numbers}


def _line(numbers: dict[str, float]) -> str:
    shown = (
        "loss", "rewards/margins", "rewards/accuracies", "log_ratio_per_token/chosen", "grad_norm", "learning_rate"
    )  # fmt: skip
    return ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
