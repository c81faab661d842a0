"""Losses of the policy alone: what the reference gives plays no part in them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from engine.dpo.losses import PairLogps, PairLoss, StepCounts
from engine.dpo.margin_losses import conservative


@dataclass(frozen=True)
class Sft:
    """Negative mean log-probability over the chosen scored tokens of the optimizer step (Pang et al. 2024, eq. 1).

    The sums are plain ones also where the preference terms beside it see weighted ones. Weights of pairs multiply it by
    their mean over the step, as in TRL 1.16.0; that couples the pairs.

    Attributes:
        coupled: whether pairs have weights.
    """

    preference: ClassVar[bool] = False
    reference_free: ClassVar[bool] = True

    coupled: bool = False

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        loss = -logps.plain_chosen.sum() / step.chosen_tokens
        return loss if logps.weights is None else loss * logps.weights.sum() / step.pairs


@dataclass(frozen=True)
class Simpo(PairLoss):
    """−log σ(β·(l̄_c − l̄_r) − γ), l̄ the policy's log-probability a scored token (Meng et al. 2024, SimPO, eq. 6).

    `simpo_gamma` γ is the reward margin aimed at; `label_smoothing` as in conservative DPO.
    """

    reference_free: ClassVar[bool] = True

    simpo_gamma: float = 0.5
    label_smoothing: float = 0.0

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """See `PairLoss`."""
        chosen, rejected = mean_logps(logps)
        return conservative(self.beta * (chosen - rejected) - self.simpo_gamma, self.label_smoothing)


@dataclass(frozen=True)
class Orpo(PairLoss):
    """The SFT loss and β times −log σ(log odds_c − log odds_r) (Hong et al. 2024, ORPO, eqs. 4, 6, 7; β is its λ).

    The odds of a response are p / (1 − p), p the geometric mean of its tokens' probabilities.
    """

    reference_free: ClassVar[bool] = True

    def of_pairs(self, logps: PairLogps) -> Tensor:
        """(B,): the part with the odds."""
        chosen, rejected = (_log_odds(side) for side in mean_logps(logps))
        return -self.beta * F.logsigmoid(chosen - rejected)

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        return Sft()(logps, step) + super().__call__(logps, step)


def mean_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """(B,) each: the policy's log-probability a scored token of the chosen and of the rejected responses."""
    return logps.policy_chosen / logps.chosen_tokens, logps.policy_rejected / logps.rejected_tokens


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 − p)) of (B,) log p; a response that is certain counts as the last number below certainty."""
    below = logp.clamp(max=-torch.finfo(torch.float64).eps)
    return below - (-below.expm1()).log()
