import math

import pytest
import torch

from engine.dpo.divergences import AlphaDivergence, forward_kl, js_divergence
from engine.dpo.losses import StepCounts, derivative
from engine.dpo.margin_losses import (
    Discopop,
    ExoPair,
    Hinge,
    Ipo,
    Robust,
    Sigmoid,
    SigmoidNorm,
    conservative,
)

ONE = StepCounts(pairs=1, chosen_tokens=1)
# Logratios 1 and −1, so the difference is 2; times β = 0.5 it is 1.
PAIR = (-10.0, -12.0, -11.0, -11.0)
SWAPPED = (PAIR[1], PAIR[0], PAIR[3], PAIR[2])
LOSS_AT_ONE = math.log(1 + math.exp(-1))  # −ln σ(1) = 0.3133
LOSS_AT_MINUS_ONE = math.log(1 + math.exp(1))  # −ln σ(−1) = 1.3133
SIGMA = 1 / (1 + math.exp(-1))


def test_the_sigmoid_loss_is_the_papers(logps):
    assert float(Sigmoid(beta=0.5)(logps(PAIR), ONE)) == pytest.approx(LOSS_AT_ONE, rel=1e-12)


def test_chosen_and_rejected_swapped_is_the_loss_of_the_opposite_margin(logps):
    assert float(Sigmoid(beta=0.5)(logps(SWAPPED), ONE)) == pytest.approx(LOSS_AT_MINUS_ONE, rel=1e-12)


def test_where_policy_is_reference_the_sigmoid_loss_is_ln_2_and_its_slope_half_of_beta(logps):
    found = logps((-10.0, -12.0, -10.0, -12.0))
    found.policy_chosen.requires_grad_()
    loss = Sigmoid(beta=0.1)(found, ONE)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2), rel=1e-12)
    assert found.policy_chosen.grad.tolist() == pytest.approx([-0.05], rel=1e-12)


def test_label_smoothing_is_conservative_dpo(logps):
    expected = 0.9 * LOSS_AT_ONE + 0.1 * LOSS_AT_MINUS_ONE
    assert float(Sigmoid(0.5, label_smoothing=0.1)(logps(PAIR), ONE)) == pytest.approx(expected, rel=1e-12)
    assert float(conservative(torch.tensor([1.0]).double(), 0.1)) == pytest.approx(expected, rel=1e-12)


def test_with_label_smoothing_a_pair_is_pushed_no_further_than_its_doubt(logps):
    # The conservative loss is least where σ(β·m) = 1 − ε: here β·m = ln 9.
    found = logps((math.log(9), 0.0, 0.0, 0.0))
    found.policy_chosen.requires_grad_()
    Sigmoid(beta=1.0, label_smoothing=0.1)(found, ONE).backward()
    assert found.policy_chosen.grad.tolist() == pytest.approx([0.0], abs=1e-12)


def test_a_margin_of_thousands_of_nats_is_lost_linearly(logps):
    assert float(Sigmoid(beta=1.0)(logps((-9000.0, 0.0, 0.0, -9000.0)), ONE)) == pytest.approx(18000.0)


def test_the_normalised_loss_takes_logratios_a_scored_token(logps):
    found = SigmoidNorm(beta=2.0)(logps(PAIR, tokens=[(4, 2)]), ONE)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2 * (1 / 4 + 1 / 2))))


def test_the_hinge_is_one_where_policy_is_reference_and_ends_at_margin_one(logps):
    rows = [(-5.0, -5.0, -5.0, -5.0), (-4.0, -5.0, -5.0, -5.0), (-3.0, -5.0, -5.0, -5.0), SWAPPED]
    assert [float(Hinge(beta=0.5)(logps(row), ONE)) for row in rows] == [1.0, 0.5, 0.0, 2.0]


def test_ipo_is_least_where_the_margin_a_token_is_one_over_two_beta(logps):
    assert float(Ipo(beta=0.5)(logps(PAIR, tokens=[(4, 2)]), ONE)) == pytest.approx((0.75 - 1) ** 2)
    assert float(Ipo(beta=0.5)(logps(PAIR, tokens=[(2, 2)]), ONE)) == 0


def test_exo_is_the_divergence_of_the_policys_choice_from_the_smoothed_label(logps):
    expected = SIGMA * math.log(SIGMA / 0.9) + (1 - SIGMA) * math.log((1 - SIGMA) / 0.1)
    assert float(ExoPair(0.5, label_smoothing=0.1)(logps(PAIR), ONE)) == pytest.approx(expected)
    assert float(ExoPair(1.0, label_smoothing=0.1)(logps((math.log(9), 0, 0, 0)), ONE)) == pytest.approx(0, abs=1e-12)


def test_the_robust_loss_over_flipped_labels_is_the_plain_loss_on_average(logps):
    robust = Robust(0.5, label_smoothing=0.2)
    expected = (0.8 * LOSS_AT_ONE - 0.2 * LOSS_AT_MINUS_ONE) / 0.6
    assert float(robust(logps(PAIR), ONE)) == pytest.approx(expected)
    assert 0.8 * float(robust(logps(PAIR), ONE)) + 0.2 * float(robust(logps(SWAPPED), ONE)) == pytest.approx(
        LOSS_AT_ONE
    )


def test_discopop_blends_the_logistic_and_the_exponential_loss_by_the_margin(logps):
    share = 1 / (1 + math.exp(-1 / 0.5))
    expected = (1 - share) * LOSS_AT_ONE + share * math.exp(-1)
    assert float(Discopop(0.5, discopop_tau=0.5)(logps(PAIR), ONE)) == pytest.approx(expected)
    same = logps((-5.0, -5.0, -5.0, -5.0))
    assert float(Discopop(0.5)(same, ONE)) == pytest.approx((math.log(2) + 1) / 2)


def test_another_divergence_takes_the_place_of_each_logratio(logps):
    forward = Hinge(0.1, divergence=forward_kl)(logps(PAIR), ONE)
    assert float(forward) == pytest.approx(1 - 0.1 * (math.exp(1) - math.exp(-1)))
    shannon = Ipo(0.5, divergence=js_divergence)(logps(PAIR, tokens=[(4, 2)]), ONE)
    mean_margin = (math.log(2) - LOSS_AT_ONE) / 4 - (math.log(2) - LOSS_AT_MINUS_ONE) / 2
    assert float(shannon) == pytest.approx((mean_margin - 1) ** 2)


FAR = [0.0, 1.0, -1.0, 39.0, -39.0, 50.0, -50.0, 79.0, -79.0, 1e5, -1e5]


@pytest.mark.parametrize("kind", [forward_kl, js_divergence, *map(AlphaDivergence, (-1.0, 0.5, 1.00001, 2.0, 10.0))])
def test_however_far_a_pair_is_out_float32_holds_the_slopes_of_ipo(logps, kind):
    pairs = [(chosen, rejected, 0.0, 0.0) for chosen in FAR for rejected in FAR]
    found = derivative(Ipo(0.1, divergence=kind), logps(*pairs), StepCounts(1, 1))
    assert all(side.float().isfinite().all() for side in (found.chosen, found.rejected))


def test_up_to_forty_nats_ipo_is_what_its_formula_says(logps):
    found = derivative(Ipo(0.1, divergence=forward_kl), logps((-39.0, 0.0, 0.0, 0.0), tokens=[(2, 3)]), ONE)
    margin = (1 - math.exp(39)) / 2
    assert found.loss == pytest.approx((margin - 5) ** 2, rel=1e-12)
    assert found.chosen.tolist() == pytest.approx([2 * (margin - 5) * math.exp(39) / 2], rel=1e-12)


@pytest.mark.parametrize("logratio", [-1e5, -500.0, 500.0, 1e5])
def test_ipo_of_logratios_has_no_bound(logps, logratio):
    assert float(Ipo(0.1)(logps((logratio, 0.0, 0.0, 0.0)), ONE)) == pytest.approx((logratio - 5) ** 2)
