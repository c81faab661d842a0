"""What a training run is between two steps: how far it is, and what moves when it takes the next one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.training.random_streams import RandomStreams


@dataclass(frozen=True)
class ClosingSums:
    """Sums of every number over the last tenth of a run's steps: one step alone says little.

    They are added up step by step, so a run that goes on has the same ones to the bit.
    """

    steps: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)

    def plus(self, numbers: Mapping[str, float], step: int, steps: int) -> "ClosingSums":
        """With the numbers of step `step` of `steps`, where that is one of the last tenth."""
        if step <= steps - max(1, steps // 10):
            return self
        added = {name: self.sums.get(name, 0.0) + value for name, value in numbers.items()}
        return ClosingSums(self.steps + 1, {**self.sums, **added})

    def means(self) -> dict[str, float]:
        """Each number's mean; of no steps there are none."""
        return {name: value / self.steps for name, value in self.sums.items()}


@dataclass(frozen=True)
class TrainingState:
    """Where a run is between two steps. The batch plan gives the rows, so nothing else is position.

    Attributes:
        step: the optimizer steps done.
        untold: the numbers of the last step as long as its listeners have not heard of it to the end.
        closing: the sums over those of the closing steps that are done.
        rng: the random streams at that point; as they are now unless given.
    """

    step: int = 0
    untold: Mapping[str, float] = field(default_factory=dict)
    closing: ClosingSums = ClosingSums()
    rng: RandomStreams = field(default_factory=RandomStreams.now, compare=False)

    @property
    def told(self) -> int:
        """The steps that listeners have heard of to the end."""
        return self.step - 1 if self.untold else self.step


@dataclass(frozen=True)
class Moving:
    """What a step changes: the trainable parameters by name, and what decides how they move."""

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
