import pytest
import torch

from engine.dpo.losses import PairLogps
from engine.dpo.rewards import rewards, summed_log_ratios_per_token, summed_metrics

# Logratios: (2, −1), (0, 0), (−3, 1), so margins 0.3, 0, −0.4 under β = 0.1.
ROWS = [(-8.0, -11.0, -10.0, -10.0), (-5.0, -7.0, -5.0, -7.0), (-9.0, -3.0, -6.0, -4.0)]


def logps(rows: list[tuple[float, float, float, float]] = ROWS) -> PairLogps:
    return PairLogps(*torch.tensor(rows, dtype=torch.float64).unbind(-1))


def test_rewards_are_beta_times_the_logratios():
    earned = rewards(logps(), 0.1)
    assert earned.chosen.tolist() == pytest.approx([0.2, 0.0, -0.3])
    assert earned.rejected.tolist() == pytest.approx([-0.1, 0.0, 0.1])
    assert earned.margins.tolist() == pytest.approx([0.3, 0.0, -0.4])


def test_a_tie_counts_one_half():
    assert rewards(logps(), 0.1).accuracies.tolist() == [1.0, 0.5, 0.0]


def test_the_metrics_have_the_ecosystems_names_and_are_sums_over_pairs():
    assert summed_metrics(logps(), 0.1) == pytest.approx(
        {
            "rewards/chosen": -0.1,
            "rewards/rejected": 0.0,
            "rewards/accuracies": 1.5,
            "rewards/margins": -0.1,
            "logps/chosen": -22.0,
            "logps/rejected": -21.0,
        }
    )


def test_log_ratios_a_token_are_each_by_their_own_responses_length_and_without_beta():
    tokens = torch.tensor([[4, 2], [1, 1], [3, 5]])
    assert summed_log_ratios_per_token(logps(), tokens) == pytest.approx(
        {"log_ratio_per_token/chosen": 2 / 4 - 3 / 3, "log_ratio_per_token/rejected": -1 / 2 + 1 / 5}
    )


def test_the_metrics_of_parts_add_up_to_those_of_the_whole():
    parts = [summed_metrics(logps([row]), 0.1) for row in ROWS]
    whole = summed_metrics(logps(), 0.1)
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)


def test_rewards_carry_no_gradient():
    found = logps()
    found.policy_chosen.requires_grad_()
    assert not rewards(found, 0.1).margins.requires_grad
