"""Rewards, margins and their averages, under the ecosystem's names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.dpo.losses import PairLogps
from engine.dpo.reference_free import mean_logps


@dataclass(frozen=True)
class Rewards:
    """Rewards of B pairs, each (B,) float64, in nats times β."""

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


def rewards(logps: PairLogps, beta: float, *, reference_free: bool = False) -> Rewards:
    """What the loss makes of each response, without gradient.

    β times the logratio (Rafailov et al. 2023, section 4); without a reference β times the policy's log-probability a
    scored token (Meng et al. 2024, SimPO, eq. 4).
    """
    chosen, rejected = mean_logps(logps) if reference_free else (logps.chosen_logratio, logps.rejected_logratio)
    return Rewards(beta * chosen.detach(), beta * rejected.detach())


def summed_metrics(logps: PairLogps, beta: float, *, reference_free: bool = False) -> dict[str, float]:
    """Sums over the pairs of what is reported as a mean over pairs; divide by the number of pairs at the end.

    Rewards are of what the loss is taken of, logps are plain sums: under LD-DPO these are two things.
    """
    earned = rewards(logps, beta, reference_free=reference_free)
    columns = {
        "rewards/chosen": earned.chosen,
        "rewards/rejected": earned.rejected,
        "rewards/accuracies": earned.accuracies,
        "rewards/margins": earned.margins,
        "logps/chosen": logps.plain_chosen.detach(),
        "logps/rejected": logps.plain_rejected.detach(),
    }
    return _sums(columns)


def summed_log_ratios_per_token(logps: PairLogps) -> dict[str, float]:
    """Sums over B pairs of the log-ratios a scored token, in nats; unlike rewards they compare across β and length.

    They are of plain sums, so that no token goes unseen, whatever it weighs in the loss.
    """
    chosen, rejected = logps.plain_chosen - logps.plain_ref_chosen, logps.plain_rejected - logps.plain_ref_rejected
    columns = {
        "log_ratio_per_token/chosen": chosen.detach() / logps.chosen_tokens,
        "log_ratio_per_token/rejected": rejected.detach() / logps.rejected_tokens,
    }
    return _sums(columns)


def _sums(columns: Mapping[str, Tensor]) -> dict[str, float]:
    sums = torch.stack([column.sum() for column in columns.values()]).tolist()
    return dict(zip(columns, sums, strict=True))
