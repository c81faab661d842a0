"""Alignment by optimal transport: not each pair must be put right, but the sorted values of the whole step.

A sort couples the pairs, so these losses are defined over the optimizer step, and a pair has no weight of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from engine.dpo.losses import PairLogps, PairLoss
from engine.dpo.margin_losses import conservative


@dataclass(frozen=True)
class Aot(PairLoss):
    """The policy's margins above the reference's, both sorted (Melnyk et al. 2024, AOT, section 3, paired).

    Each margin is log π(y_c) − log π(y_r). The i-th smallest of one is held against the i-th smallest of the other by
    the conservative logistic loss with `label_smoothing`.
    """

    coupled: ClassVar[bool] = True

    label_smoothing: float = 0.0

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`; by rank, not by pair."""
        policy = (logps.policy_chosen - logps.policy_rejected).sort().values
        ref = (logps.ref_chosen - logps.ref_rejected).sort().values
        return conservative(self.beta * (policy - ref), self.label_smoothing)


@dataclass(frozen=True)
class AotUnpaired(PairLoss):
    """The same of the chosen logratios above the rejected ones, both sorted (Melnyk et al. 2024, unpaired)."""

    coupled: ClassVar[bool] = True

    label_smoothing: float = 0.0

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`; by rank, not by pair."""
        chosen, rejected = logps.chosen_logratio.sort().values, logps.rejected_logratio.sort().values
        return conservative(self.beta * (chosen - rejected), self.label_smoothing)
