"""Losses of the difference m between what chosen and rejected response are worth: (B,) nats, before β.

Under the reverse KL that is the difference of the logratios; see `divergences` for the others.
"""

import math
from abc import ABC
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from engine.dpo.divergences import Divergence, reverse_kl, squarable
from engine.dpo.losses import PairLogps, PairLoss


@dataclass(frozen=True)
class MarginLoss(PairLoss, ABC):
    """A loss of a pair's margin alone."""

    divergence: Divergence = field(default=reverse_kl, kw_only=True)

    def score(self, logratio: Tensor) -> Tensor:
        """(B,): what responses of these logratios are worth."""
        return self.divergence(logratio)

    def margin(self, logps: PairLogps) -> Tensor:
        """(B,): m."""
        return self.score(logps.chosen_logratio) - self.score(logps.rejected_logratio)

    def mean_margin(self, logps: PairLogps) -> Tensor:
        """(B,): the same of what each response is worth a scored token."""
        chosen = self.score(logps.chosen_logratio) / logps.chosen_tokens
        return chosen - self.score(logps.rejected_logratio) / logps.rejected_tokens


def conservative(margin: Tensor, label_smoothing: float) -> Tensor:
    """−(1 − ε) log σ(x) − ε log σ(−x) at each x of (B,) margins (Mitchell 2023, a note on noisy preferences)."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


@dataclass(frozen=True)
class Sigmoid(MarginLoss):
    """The DPO loss −log σ(β·m) (Rafailov et al. 2023, eq. 7); with `label_smoothing` ε it is conservative DPO."""

    label_smoothing: float = 0.0

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return conservative(self.beta * self.margin(logps), self.label_smoothing)


@dataclass(frozen=True)
class SigmoidNorm(MarginLoss):
    """−log σ(β·m̄), m̄ of the scores a scored token (Lambert et al. 2024, Tülu 3: length-normalised DPO)."""

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return -F.logsigmoid(self.beta * self.mean_margin(logps))


@dataclass(frozen=True)
class Hinge(MarginLoss):
    """max(0, 1 − β·m) (Zhao et al. 2023, SLiC-HF, section 2; of logratios by Liu et al. 2024, RSO)."""

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return torch.relu(1 - self.beta * self.margin(logps))


@dataclass(frozen=True)
class Ipo(MarginLoss):
    """(m̄ − 1/(2β))², β the paper's τ (Azar et al. 2023, eq. 17), of scores a scored token, as its authors ran it."""

    def score(self, logratio: Tensor) -> Tensor:
        """See `MarginLoss`."""
        return squarable(self.divergence(logratio))

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        return (self.mean_margin(logps) - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class ExoPair(MarginLoss):
    """KL(p_θ ‖ p_r) over the two responses (Ji et al. 2024, EXO, eq. 16).

    p_θ = (σ(β·m), σ(−β·m)) and p_r = (1 − ε, ε); `label_smoothing` ε is above zero, else the divergence is infinite.
    """

    label_smoothing: float = 1e-3

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        margin = self.beta * self.margin(logps)
        kept = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-self.label_smoothing))
        flipped = (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(self.label_smoothing))
        return kept + flipped


@dataclass(frozen=True)
class Robust(MarginLoss):
    """The DPO loss, unbiased where labels are flipped with probability ε (Chowdhury et al. 2024, rDPO, section 3.1).

    (−(1 − ε) log σ(β·m) + ε log σ(−β·m)) / (1 − 2ε); `label_smoothing` ε is below one half.
    """

    label_smoothing: float = 0.0

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        margin, flipped = self.beta * self.margin(logps), self.label_smoothing
        kept = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
        return kept / (1 - 2 * flipped)


@dataclass(frozen=True)
class Discopop(MarginLoss):
    """Log-ratio modulated loss: −(1 − s) log σ(x) + s·e^(−x), x = β·m, s = σ(x/τ) (Lu et al. 2024, DiscoPOP, eq. 5).

    `discopop_tau` τ is at most one: then s·e^(−x) stays finite however wrong a pair is. The product is taken in log
    space, since its two factors alone go to zero and to infinity.
    """

    discopop_tau: float = 0.05

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        margin = self.beta * self.margin(logps)
        modulation = margin / self.discopop_tau
        exponential = (F.logsigmoid(modulation) - margin).exp()
        return exponential - (-modulation).sigmoid() * F.logsigmoid(margin)
