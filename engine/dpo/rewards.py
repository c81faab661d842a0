"""Rewards, margins and their averages, under the ecosystem's names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.dpo.losses import PairLogps


@dataclass(frozen=True)
class Rewards:
    """Implicit rewards of B pairs, each (B,) float64, in nats times β (Rafailov et al. 2023, section 4)."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        """(B,): chosen minus rejected."""
        return self.chosen - self.rejected

    @property
    def accuracies(self) -> Tensor:
        """(B,): 1 where the chosen response has the higher reward, one half on a tie, else 0."""
        return (self.margins > 0).double() + 0.5 * (self.margins == 0).double()


def rewards(logps: PairLogps, beta: float) -> Rewards:
    """β times the logratios, without gradient."""
    return Rewards(beta * logps.chosen_logratio.detach(), beta * logps.rejected_logratio.detach())


def summed_metrics(logps: PairLogps, beta: float) -> dict[str, float]:
    """Sums over the pairs of what is reported as a mean over pairs; divide by the number of pairs at the end."""
    earned = rewards(logps, beta)
    columns = {
        "rewards/chosen": earned.chosen,
        "rewards/rejected": earned.rejected,
        "rewards/accuracies": earned.accuracies,
        "rewards/margins": earned.margins,
        "logps/chosen": logps.policy_chosen.detach(),
        "logps/rejected": logps.policy_rejected.detach(),
    }
    return _sums(columns)


def summed_log_ratios_per_token(logps: PairLogps, tokens: Tensor) -> dict[str, float]:
    """Sums over B pairs of the log-ratios a scored token, in nats; unlike rewards they compare across β and length.

    Args:
        tokens: (B, 2) on any device, scored tokens of the chosen and the rejected responses, at least one each.
    """
    counts = tokens.to(logps.ref_chosen)
    columns = {
        "log_ratio_per_token/chosen": logps.chosen_logratio.detach() / counts[:, 0],
        "log_ratio_per_token/rejected": logps.rejected_logratio.detach() / counts[:, 1],
    }
    return _sums(columns)


def _sums(columns: Mapping[str, Tensor]) -> dict[str, float]:
    sums = torch.stack([column.sum() for column in columns.values()]).tolist()
    return dict(zip(columns, sums, strict=True))
