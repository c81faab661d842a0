"""Logps of whole responses as an evaluation takes them: plain sums, and those that the loss is taken of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from engine.preferences.pairs import TokenPair

if TYPE_CHECKING:
    from torch import Tensor

    from engine.dpo.losses import PairLogps


class Scored(Protocol):
    """The scores of one pair, as `engine.models.scoring.PairScores` has them."""

    def sums(self, ld_alpha: float | None = None) -> tuple[float, float]:
        """The chosen and the rejected sum; with `ld_alpha` those of LD-DPO."""
        ...


@dataclass(frozen=True)
class Sums:
    """The logps of N pairs under one policy: (N, 2) float64, chosen and rejected, in nats.

    Attributes:
        plain: sums over all scored tokens, which say how likely a response is.
        weighted: sums in which tokens weigh what the loss has them weigh; None where they are the plain ones.
    """

    plain: "Tensor"
    weighted: "Tensor | None" = None

    @classmethod
    def of(cls, scores: Sequence[Scored], ld_alpha: float | None = None) -> Self:
        """Of scored pairs, for a loss with this `ld_alpha`."""
        import torch

        plain, weighted = (
            torch.tensor([each.sums(alpha) for each in scores], dtype=torch.float64).reshape(-1, 2)
            for alpha in (None, ld_alpha)
        )
        return cls(plain, None if ld_alpha is None else weighted)

    @property
    def of_the_loss(self) -> "Tensor":
        """(N, 2): those that the loss, the rewards and the margin are taken of."""
        return self.plain if self.weighted is None else self.weighted


def pair_logps(pairs: Sequence[TokenPair], policy: Sums, ref: Sums | None) -> "PairLogps":
    """What a loss is taken of: the sums, beside the pairs' counts of scored tokens.

    Args:
        ref: weighted where the policy's are; no reference is zeros.
    """
    import torch

    from engine.dpo.losses import PairLogps

    start = ref or Sums(torch.zeros_like(policy.plain))
    counts = torch.tensor([[row.scored_tokens for row in pair.rows] for pair in pairs]).reshape(-1, 2)
    found = PairLogps(*policy.of_the_loss.unbind(1), *start.of_the_loss.unbind(1), *counts.unbind(1))
    return found if policy.weighted is None else found.with_plain(policy.plain, start.plain)
