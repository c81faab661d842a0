"""Losses that look at each side of a pair for itself, at β times its logratio and not at the margin alone."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from engine.dpo.losses import PairLogps, PairLoss


@dataclass(frozen=True)
class NcaPair(PairLoss):
    """−log σ(r_c) − ½ log σ(−r_c) − ½ log σ(−r_r), r = β·logratio (Chen et al. 2024, NCA, section 4.1).

    It keeps the chosen response's own likelihood from falling.
    """

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        chosen, rejected = self.beta * logps.chosen_logratio, self.beta * logps.rejected_logratio
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@dataclass(frozen=True)
class BcoPair(PairLoss):
    """−log σ(r_c) − log σ(−r_r), r = β·logratio (Jung et al. 2024, BCO, section 4, without its reward shift).

    The quality term of mixed preference optimization (Wang et al. 2024, MPO).
    """

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return -F.logsigmoid(self.beta * logps.chosen_logratio) - F.logsigmoid(-self.beta * logps.rejected_logratio)


@dataclass(frozen=True)
class SppoHard(PairLoss):
    """(u_c − 1/(2β))² + (u_r + 1/(2β))², u the logratios (Wu et al. 2024, SPPO, eq. 4.7 with P one and zero)."""

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        goal = 1 / (2 * self.beta)
        return (logps.chosen_logratio - goal) ** 2 + (logps.rejected_logratio + goal) ** 2


@dataclass(frozen=True)
class ApoZero(PairLoss):
    """1 − σ(r_c) + σ(r_r) (D'Oosterlinck et al. 2024, APO, eq. 7): chosen responses are better than the policy's."""

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return (-self.beta * logps.chosen_logratio).sigmoid() + (self.beta * logps.rejected_logratio).sigmoid()


@dataclass(frozen=True)
class ApoDown(PairLoss):
    """σ(r_c) + 1 − σ(r_c − r_r) (the same, eq. 8): chosen responses are worse than the policy's."""

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return (self.beta * logps.chosen_logratio).sigmoid() + (-self.beta * logps.logratio_margin).sigmoid()
