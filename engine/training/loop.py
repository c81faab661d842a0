"""The optimizer loop that sft and DPO share. It emits one record a step; whoever logs, draws or stops only listens."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_scheduler

from engine.errors import NumericsError, StoreError
from engine.models.lora import trainable_parameters
from engine.models.memory import shortage_told
from engine.preferences.batching import BatchPlan
from engine.training.checkpoint import Checkpoints, Moving, TrainingState

_log = logging.getLogger("dpo")

_LOWER = "lower runtime.micro_batch_tokens and run again: it goes on from the last checkpoint"
_SMALLEST_SCALE = 1.0  # of a float16 loss; below it the gradient itself is too large, not its scale


@dataclass(frozen=True)
class Optimization:
    """How the weights move: AdamW under a schedule with warm-up, and clipping.

    Attributes:
        schedule: transformers' name of the schedule ("linear", "cosine", "constant_with_warmup").
        warmup_share: share of the steps over which the learning rate rises from 0.
        max_grad_norm: gradients are scaled down to this norm.
    """

    learning_rate: float
    schedule: str = "linear"
    warmup_share: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as listeners see it.

    Attributes:
        step: steps done, this one included.
        steps: steps in all.
        numbers: `loss`, `grad_norm`, `learning_rate`, `epoch`, and what the objective reports, means over the step.
    """

    step: int
    steps: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class Contribution:
    """What one micro-batch brings to an optimizer step.

    Attributes:
        rows: the rows to name when the loss is not finite.
        loss: its share of the step's loss.
        surrogate: a scalar whose gradient is the gradient of that share.
        metrics: its shares of the step's other numbers.
    """

    rows: Sequence[int]
    loss: float
    surrogate: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """What is minimised."""

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """Splits the rows of one step into parts that fit."""
        ...

    def contributions(self, model: torch.nn.Module, rows: Sequence[int]) -> Iterator[Contribution]:
        """The micro-batches of the step that holds `rows`, one after the other: the next is computed when asked for."""
        ...

    def describe(self, rows: Sequence[int]) -> str:
        """Names rows for an error message."""
        ...


@dataclass
class Trainer:
    """Runs an objective over a batch plan, from the newest checkpoint on if there is one.

    Attributes:
        model: on the accelerator's device; only parameters with `requires_grad` are changed and saved.
        on_step: called after every step; what it raises ends the run. It may be told the same step again by the run
            that goes on from a checkpoint.
        checkpoint_seconds: at most this much work is lost to a kill; to a stop, one step at most.
    """

    model: torch.nn.Module
    objective: Objective
    plan: BatchPlan
    how: Optimization
    accelerator: Accelerator
    checkpoints: Checkpoints
    on_step: Callable[[StepRecord], None]
    checkpoint_seconds: float = 120.0
    _at: TrainingState | None = field(default=None, init=False)  # None while the weights move: no state to go on from

    def run(
        self, on_start: Callable[[int], None] = lambda step: None, on_end: Callable[[], None] = lambda: None
    ) -> None:
        """Trains to the end of the plan; the model is in eval mode afterwards.

        A stop — Ctrl-C, a signal that became an exception — leaves a checkpoint of the last finished step, and the run
        that goes on from it ends as if it had not been stopped. One that hits the weights while they move leaves the
        checkpoints that were there.

        Args:
            on_start: told the steps that a checkpoint brought back, 0 when there was none.
            on_end: called when all is done; a stop until it returns leaves a checkpoint, too.

        Raises:
            NumericsError: the loss or a gradient is NaN or infinite; names the step and its rows.
            MemoryShortageError: memory ran out; names the step and its rows.
            StoreError: a checkpoint cannot be written, or is of another model.
        """
        moving = self._moving(trainable_parameters(self.model))
        state = self.checkpoints.restore(moving) or TrainingState()
        save = partial(self.checkpoints.save, moving=moving)
        on_start(state.step)
        saved_at = time.monotonic()
        self._at = state
        self.model.train()
        with self._kept_when_stopped(save, state.step):
            if state.untold:
                self._tell(state)
            for rows in self.plan.steps_from(state.step):
                state = self._tell(self._step(state.step, rows, moving))
                if time.monotonic() - saved_at >= self.checkpoint_seconds:
                    save(state)
                    saved_at = time.monotonic()
            self.model.eval()
            on_end()

    @contextmanager
    def _kept_when_stopped(self, save: Callable[[TrainingState], object], begun: int) -> Iterator[None]:
        try:
            yield
        except Exception:
            raise
        except BaseException:
            if self._at is not None and self._at.step > begun:
                try:
                    save(self._at)
                except StoreError as error:  # the stop goes on all the same
                    _log.warning("%s", error)
            raise

    def _tell(self, state: TrainingState) -> TrainingState:
        self.on_step(StepRecord(state.step, self.plan.steps, dict(state.untold)))
        self._at = state = TrainingState(state.step)
        return state

    def _moving(self, parameters: Mapping[str, torch.nn.Parameter]) -> Moving:
        how = self.how
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=how.learning_rate, betas=how.betas, weight_decay=how.weight_decay, fused=True
        )
        warmup = math.ceil(how.warmup_share * self.plan.steps)
        schedule = get_scheduler(how.schedule, optimizer, warmup, self.plan.steps)
        half = any(value.dtype == torch.float16 for value in self.model.parameters())
        return Moving(parameters, optimizer, schedule, torch.amp.GradScaler(self.accelerator.device.type, enabled=half))

    def _step(self, done: int, rows: list[int], moving: Moving) -> TrainingState:
        numbers, norm = self._gradients(done, rows, moving)
        while not math.isfinite(norm):
            if moving.scaler.get_scale() <= _SMALLEST_SCALE:
                raise self._not_finite("the gradient", norm, done, rows)
            # The gradient left float16's range: the same rows again, scaled by less.
            moving.scaler.update(moving.scaler.get_scale() / 2)
            moving.optimizer.zero_grad()
            numbers, norm = self._gradients(done, rows, moving)
        rate = moving.schedule.get_last_lr()[0]
        numbers |= {"grad_norm": norm, "learning_rate": rate, "epoch": (done + 1) / self.plan.steps_per_epoch}
        self._at = None
        moving.scaler.step(moving.optimizer)
        moving.scaler.update()
        moving.schedule.step()
        self._at = state = TrainingState(done + 1, numbers)
        moving.optimizer.zero_grad()
        return state

    def _gradients(self, done: int, rows: list[int], moving: Moving) -> tuple[dict[str, float], float]:
        """The step's numbers and the norm of its gradient, which is clipped."""
        numbers: dict[str, float] = {"loss": 0.0}
        with shortage_told(f"step {done + 1}, {self.objective.describe(rows)}", _LOWER):
            for part in self.objective.contributions(self.model, rows):
                if not math.isfinite(part.loss):
                    raise self._not_finite("the loss", part.loss, done, part.rows)
                self.accelerator.backward(moving.scaler.scale(part.surrogate))
                for name, share in {"loss": part.loss, **part.metrics}.items():
                    numbers[name] = numbers.get(name, 0.0) + share
        moving.scaler.unscale_(moving.optimizer)
        return numbers, float(self.accelerator.clip_grad_norm_(moving.parameters.values(), self.how.max_grad_norm))

    def _not_finite(self, what: str, value: float, step: int, rows: Sequence[int]) -> NumericsError:
        return NumericsError(
            f"{what} of step {step + 1} is not finite",
            expected="a finite number",
            found=str(value),
            where=self.objective.describe(rows),
            fix="look at these rows; if they are sound, lower the learning rate",
        )
