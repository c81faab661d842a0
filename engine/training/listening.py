"""What those who follow a training run are told, and what they may ask of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import NumericsError
from engine.training.state import TrainingState


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as listeners see it.

    Attributes:
        step: steps done, this one included.
        steps: steps in all.
        numbers: `loss`, `grad_norm`, `learning_rate`, `epoch`, and what the objective reports, means over the step.
        rows, seconds: what it was taken of, and how long that took. None of a step that an earlier attempt took and
            listeners are told of again.
    """

    step: int
    steps: int
    numbers: dict[str, float]
    rows: Sequence[int] | None = None
    seconds: float | None = None


class Watcher:
    """Looks at a run and may end it before its plan does. This one sees nothing."""

    def begin(self, state: TrainingState, steps: Sequence[Mapping[str, Any]]) -> None:
        """Told where the run begins or goes on, the weights being as they were then.

        Args:
            steps: the lines of the journal, among them those of the steps that listeners have heard of.
        """

    def step(self, record: StepRecord) -> None:
        """Told every step that is done. It draws no random number and changes no weight."""

    def ends(self) -> bool:
        """Whether no further step is to be taken. Asked before each."""
        return False

    def survives(self, error: NumericsError, step: int) -> bool:
        """Whether the run ends in order, at the step before, where that step's loss or gradient is not finite."""
        return False

    def end(self) -> None:
        """Told that no more steps are taken, before the result is saved; it may put other weights into the model."""
