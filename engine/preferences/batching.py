"""Which rows go through the model when. Pure functions of their arguments: the same run, the same batches."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """The optimizer steps of a training run over `rows` rows.

    Every epoch is a new shuffle seeded by (seed, epoch); the last step of an epoch holds what is left.

    Attributes:
        rows: number of rows.
        batch_size: rows an optimizer step.
    """

    rows: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.steps_per_epoch * self.epochs

    def order(self, epoch: int) -> list[int]:
        """The rows of one epoch in the order they are seen."""
        order = list(range(self.rows))
        random.Random(f"{self.seed}:{epoch}").shuffle(order)  # a str seeds the same on every platform and version
        return order

    def steps_from(self, step: int) -> Iterator[list[int]]:
        """The rows of each step that is left when `step` of them are done, to the end of the last epoch."""
        for epoch in range(step // self.steps_per_epoch, self.epochs) if self.rows else ():
            order = self.order(epoch)
            first = max(0, step - epoch * self.steps_per_epoch)
            for begin in range(first * self.batch_size, self.rows, self.batch_size):
                yield order[begin : begin + self.batch_size]


def by_length(lengths: Sequence[int] | Mapping[int, int], rows: Sequence[int], size: int) -> list[list[int]]:
    """Splits rows into micro-batches of at most `size` with similar lengths, longest first, so little is padding."""
    ordered = sorted(rows, key=lambda row: -lengths[row])
    return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
