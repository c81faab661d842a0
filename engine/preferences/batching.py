"""Which rows go through the model when. Pure functions of their arguments: the same run, the same batches."""

import math
import random
from collections.abc import Iterator, Mapping
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


def by_tokens(sizes: Mapping[int, int], budget: int, *, rectangular: bool) -> list[list[int]]:
    """Splits items into micro-batches of at most `budget` tokens, longest items first; one above it goes alone.

    Within an optimizer step the order changes nothing but rounding. So length may decide it here, while the steps
    themselves stay a plain seeded shuffle.

    Args:
        sizes: item → tokens it takes up by itself; the order of equal sizes is kept.
        rectangular: every item of a micro-batch takes up as much as its longest one.
    """
    parts: list[list[int]] = []
    room = widest = 0
    for item in sorted(sizes, key=lambda item: -sizes[item]):
        if not parts or (widest if rectangular else sizes[item]) > room:
            parts.append([])
            room, widest = budget, sizes[item]
        parts[-1].append(item)
        room -= widest if rectangular else sizes[item]
    return parts
