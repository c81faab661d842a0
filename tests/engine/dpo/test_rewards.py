import pytest

from engine.dpo.rewards import rewards, summed_log_ratios_per_token, summed_metrics

# Logratios: (2, −1), (0, 0), (−3, 1), so margins 0.3, 0, −0.4 under β = 0.1.
ROWS = [(-8.0, -11.0, -10.0, -10.0), (-5.0, -7.0, -5.0, -7.0), (-9.0, -3.0, -6.0, -4.0)]


def test_rewards_are_beta_times_the_logratios(logps):
    earned = rewards(logps(*ROWS), 0.1)
    assert earned.chosen.tolist() == pytest.approx([0.2, 0.0, -0.3])
    assert earned.rejected.tolist() == pytest.approx([-0.1, 0.0, 0.1])
    assert earned.margins.tolist() == pytest.approx([0.3, 0.0, -0.4])


def test_a_tie_counts_one_half(logps):
    assert rewards(logps(*ROWS), 0.1).accuracies.tolist() == [1.0, 0.5, 0.0]


def test_the_metrics_have_the_ecosystems_names_and_are_sums_over_pairs(logps):
    assert summed_metrics(logps(*ROWS), 0.1) == pytest.approx(
        {
            "rewards/chosen": -0.1,
            "rewards/rejected": 0.0,
            "rewards/accuracies": 1.5,
            "rewards/margins": -0.1,
            "logps/chosen": -22.0,
            "logps/rejected": -21.0,
        }
    )


def test_log_ratios_a_token_are_each_by_their_own_responses_length_and_without_beta(logps):
    found = logps(*ROWS, tokens=[(4, 2), (1, 1), (3, 5)])
    assert summed_log_ratios_per_token(found) == pytest.approx(
        {"log_ratio_per_token/chosen": 2 / 4 - 3 / 3, "log_ratio_per_token/rejected": -1 / 2 + 1 / 5}
    )


def test_the_metrics_of_parts_add_up_to_those_of_the_whole(logps):
    parts = [summed_metrics(logps(row), 0.1) for row in ROWS]
    whole = summed_metrics(logps(*ROWS), 0.1)
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)


def test_rewards_carry_no_gradient(logps):
    found = logps(*ROWS)
    found.policy_chosen.requires_grad_()
    assert not rewards(found, 0.1).margins.requires_grad


def test_without_a_reference_rewards_are_beta_times_the_mean_log_probability_of_a_token(logps):
    found = logps(*ROWS, tokens=[(4, 2), (1, 7), (3, 5)])
    earned = rewards(found, 2.0, reference_free=True)
    assert earned.chosen.tolist() == pytest.approx([-4.0, -10.0, -6.0])
    assert earned.rejected.tolist() == pytest.approx([-11.0, -2.0, -1.2])
    metrics = summed_metrics(found, 2.0, reference_free=True)
    assert metrics["rewards/margins"] == pytest.approx(-20.0 + 14.2)
    assert metrics["rewards/accuracies"] == 1.0
    assert metrics["logps/chosen"] == -22.0  # sums, as ever


def test_beside_weighted_sums_logps_and_log_ratios_are_of_the_plain_ones_and_rewards_are_not(logps):
    plain = {"whole_chosen": [-20.0], "whole_rejected": [-30.0]}
    found = logps(
        (-8.0, -11.0, -10.0, -10.0), tokens=[(4, 2)], **plain, whole_ref_chosen=[-12.0], whole_ref_rejected=[-29.0]
    )
    metrics = summed_metrics(found, 0.1)
    assert (metrics["logps/chosen"], metrics["logps/rejected"]) == (-20.0, -30.0)
    assert (metrics["rewards/chosen"], metrics["rewards/rejected"]) == pytest.approx((0.2, -0.1))
    ratios = {"log_ratio_per_token/chosen": -2.0, "log_ratio_per_token/rejected": -0.5}
    assert summed_log_ratios_per_token(found) == pytest.approx(ratios)
    with pytest.raises(ValueError, match="plain ones of the reference"):
        summed_log_ratios_per_token(logps((-8.0, -11.0, -10.0, -10.0), **plain))
