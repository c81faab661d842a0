"""The optimizer loop that sft and DPO share. It emits one record a step; whoever logs, draws or stops only listens."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_scheduler

from engine.errors import MemoryShortageError, NumericsError, StoreError
from engine.models.lora import trainable_parameters
from engine.models.memory import shortage_told
from engine.preferences.batching import BatchPlan
from engine.training.checkpoint import Checkpoints
from engine.training.listening import StepRecord, Watcher
from engine.training.parameter_groups import parameter_groups
from engine.training.random_streams import RandomStreams, seed_streams
from engine.training.state import Moving, TrainingState
from engine.training.stops import Stops

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
        plus_ratio: LoRA+: how many times faster B moves than A, whose rate is `learning_rate`; 0 for alike.
    """

    learning_rate: float
    schedule: str = "linear"
    warmup_share: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    plus_ratio: float = 0.0

    def scheduled(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """The schedule over so many steps in all."""
        warmup = math.ceil(self.warmup_share * steps)
        schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(self.schedule, optimizer, warmup, steps)
        return schedule

    def highest_rate(self, taken: int, steps: int) -> float:
        """The highest learning rate among the first `taken` of `steps` steps; under LoRA+ that of A. 0 for no step."""
        [factor] = self.scheduled(torch.optim.SGD([torch.zeros(0)], lr=1.0), steps).lr_lambdas
        return max((self.learning_rate * factor(step) for step in range(taken)), default=0.0)


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

    def tokens(self, rows: Sequence[int]) -> int:
        """Tokens that go through the model for a step of these rows, padding left out."""
        ...


@dataclass
class Trainer:
    """Runs an objective over a batch plan, from the newest checkpoint on if there is one.

    Attributes:
        model: on the accelerator's device; only parameters with `requires_grad` are changed and saved.
        on_step: called after every step; what it raises ends the run. It may be told the same step again by the run
            that goes on from a checkpoint.
        checkpoint_seconds, checkpoint_steps: a checkpoint is written after so much time, at every so manieth step where
            that is not 0, and at the end. At most the work since then is lost to a kill, and one step to a stop.
        before_save: called before a checkpoint is written. What listeners were told of the steps until then must be on
            the disk when it returns, since nobody tells them again.
        watcher: asked before every step whether to take it.
    """

    model: torch.nn.Module
    objective: Objective
    plan: BatchPlan
    how: Optimization
    accelerator: Accelerator
    checkpoints: Checkpoints
    on_step: Callable[[StepRecord], None]
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int = 0
    before_save: Callable[[], None] = lambda: None
    watcher: Watcher = field(default_factory=Watcher)
    _at: TrainingState | None = field(default=None, init=False)  # None while the weights move: no state to go on from
    _saved: tuple[int, float] = field(default=(0, 0.0), init=False)  # the last checkpoint's step, and when that was
    _stops: Stops = field(default_factory=Stops, init=False)

    def run(
        self,
        on_start: Callable[[TrainingState], None] = lambda state: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Trains to the end of the plan, or to where the watcher ends it; the model is in eval mode afterwards.

        A stop — Ctrl-C, a signal that became an exception — leaves a checkpoint of the last finished step, and the run
        that goes on from it ends as if it had not been stopped. One that hits the weights while they move, or a
        checkpoint while it is written, is held back until that is over; in another thread than the main one, where
        it cannot be, it leaves the checkpoints that were there.

        Args:
            on_start: told what a checkpoint brought back, no steps when there was none.
            on_end: called when all is done; a stop until it returns leaves a checkpoint, too.

        Returns:
            Every number of the steps as a mean over the last tenth of the plan's; of none of those there is none.

        Raises:
            NumericsError: the loss or a gradient is NaN or infinite, and the watcher lets that end the run; names the
                step and its rows.
            MemoryShortageError: memory ran out; names the step and its rows. It leaves a checkpoint as a stop does.
            StoreError: a checkpoint cannot be written or read.
        """
        moving = self._moving(trainable_parameters(self.model))
        state = self._begin(moving)
        on_start(state)
        self.model.train()
        with self._stops.watched(), self._kept_when_stopped(moving):
            if state.untold:
                state = self._tell(state)
            for rows in self.plan.steps_from(state.step):
                began = time.perf_counter()
                taken = None if self.watcher.ends() else self._taken(state, rows, moving)
                if taken is None:
                    break
                state = self._tell(taken, rows, time.perf_counter() - began)
                if self._due(state.step):
                    self._save(state, moving)
            if state.step > self._saved[0]:
                self._save(state, moving)  # writing and sealing the result takes time, and may fail
            self.model.eval()
            on_end()
        return state.closing.means()

    def _begin(self, moving: Moving) -> TrainingState:
        """Where the newest checkpoint was, or the start, whose draws depend on the seed alone."""
        state = self.checkpoints.restore(moving)
        if state is None:
            seed_streams(self.plan.seed)
            state = TrainingState()
        self._saved = (state.step, time.monotonic())
        self._at = state
        return state

    def _due(self, step: int) -> bool:
        by_steps = self.checkpoint_steps and step % self.checkpoint_steps == 0
        return bool(by_steps) or time.monotonic() - self._saved[1] >= self.checkpoint_seconds

    def _save(self, state: TrainingState, moving: Moving) -> None:
        with self._stops.held():
            self.before_save()
            self.checkpoints.save(state, moving)
            self._saved = (state.step, time.monotonic())

    @contextmanager
    def _kept_when_stopped(self, moving: Moving) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, MemoryShortageError):
                self._save_what_is_done(moving)
            raise

    def _save_what_is_done(self, moving: Moving) -> None:
        """A checkpoint of the last finished step where there is none yet. The stop goes on if it cannot be written."""
        if self._at is None or self._at.step <= self._saved[0]:
            return
        try:
            self._save(self._at, moving)
        except (StoreError, OSError) as error:
            _log.warning("%s", error)

    def _tell(
        self, state: TrainingState, rows: Sequence[int] | None = None, seconds: float | None = None
    ) -> TrainingState:
        self.on_step(StepRecord(state.step, self.plan.steps, dict(state.untold), rows, seconds))
        self._at = state = replace(state, untold={}, rng=RandomStreams.now())
        return state

    def _moving(self, parameters: Mapping[str, torch.nn.Parameter]) -> Moving:
        how = self.how
        groups = parameter_groups(parameters, how.learning_rate, how.plus_ratio)
        optimizer = torch.optim.AdamW(groups, betas=how.betas, weight_decay=how.weight_decay, fused=True)
        schedule = how.scheduled(optimizer, self.plan.steps)
        half = any(value.dtype == torch.float16 for value in self.model.parameters())
        return Moving(parameters, optimizer, schedule, torch.amp.GradScaler(self.accelerator.device.type, enabled=half))

    def _taken(self, before: TrainingState, rows: list[int], moving: Moving) -> TrainingState | None:
        """After one more step; None where it is not finite and the watcher takes that for the end."""
        try:
            return self._step(before, rows, moving)
        except NumericsError as error:
            if not self.watcher.survives(error, before.step + 1):
                raise
            return None

    def _step(self, before: TrainingState, rows: list[int], moving: Moving) -> TrainingState:
        done = before.step
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
        with self._stops.held():
            self._at = None
            moving.scaler.step(moving.optimizer)
            moving.scaler.update()
            moving.schedule.step()
            closing = before.closing.plus(numbers, done + 1, self.plan.steps)
            self._at = state = TrainingState(done + 1, numbers, closing)
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
