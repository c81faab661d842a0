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
from engine.training.loop import Objective, Optimization, StepRecord, Trainer


@dataclass(frozen=True)
class Upkeep:
    """What is kept and told while a run goes on. None of it changes the result.

    Attributes:
        work: the stage's work folder; checkpoints and logs of an interrupted attempt are found there.
        progress: told (steps done, steps in all, the step's numbers).
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
        means: every number of the steps, as a mean over the last tenth of them.
        steps: optimizer steps of the whole run.
        rows_per_second: of this attempt; a resumed one counts its own rows only.
    """

    means: dict[str, float]
    steps: int
    rows_per_second: float


def train(
    model: torch.nn.Module,
    objective: Objective,
    plan: BatchPlan,
    how: Optimization,
    accelerator: Accelerator,
    upkeep: Upkeep,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    save: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains `model` in place over the whole plan, from the newest checkpoint in the work folder if there is one.

    Args:
        save: writes what was trained; only afterwards are the checkpoints put aside.

    Raises:
        NumericsError: a loss or gradient is not finite.
        StoreError: a checkpoint cannot be written or read.
    """
    began, first, seconds = time.monotonic(), 0, 0.0

    with Journal(upkeep.work / "logs", accelerator, upkeep.name) as journal:

        def started(step: int) -> None:
            nonlocal first
            first = step
            journal.begin(step)
            if step:
                upkeep.log.info("going on from the checkpoint at step %d of %d", step, plan.steps)

        def ended() -> None:
            nonlocal seconds
            seconds = max(time.monotonic() - began, 1e-9)
            save()

        def stepped(record: StepRecord) -> None:
            journal.add(record)
            upkeep.progress(record.step, record.steps, record.numbers)
            if record.step % upkeep.log_every_steps == 0 or record.step == record.steps:
                upkeep.log.info("step %d/%d: %s", record.step, record.steps, _line(record.numbers))
            on_step(record)

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
            before_save=journal.sync,
        )
        means = trainer.run(started, ended)
    rows = plan.rows * plan.epochs * (plan.steps - first) / plan.steps
    return Trained(means, plan.steps, round(rows / seconds, 2))


def _line(numbers: dict[str, float]) -> str:
    shown = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm", "learning_rate")
    return ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)
