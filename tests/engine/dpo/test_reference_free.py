import math

import pytest

from engine.dpo.losses import StepCounts, derivative
from engine.dpo.reference_free import Orpo, Sft, Simpo, mean_logps

ONE = StepCounts(pairs=1, chosen_tokens=4)
# Means a token: −0.5 and −2; the reference is nothing to these losses.
PAIR = (-2.0, -6.0, 0.0, 0.0)
OTHER_REFERENCE = (-2.0, -6.0, -5.0, -1.0)
TOKENS = [(4, 3)]


def odds(p: float) -> float:
    return p / (1 - p)


def test_the_sft_loss_is_the_negative_mean_over_the_steps_chosen_scored_tokens(logps):
    found = logps((-10.0, -1.0, 0.0, 0.0), (-20.0, -1.0, 0.0, 0.0))
    assert float(Sft()(found, StepCounts(pairs=2, chosen_tokens=12))) == pytest.approx(30 / 12)


def test_the_sft_loss_is_of_plain_sums_where_others_see_weighted_ones(logps):
    found = logps((-10.0, -1.0, 0.0, 0.0), whole_chosen=[-16.0])
    assert float(Sft()(found, ONE)) == pytest.approx(16 / 4)


def test_weights_multiply_the_sft_loss_by_their_mean(logps):
    found = logps((-10.0, -1.0, 0.0, 0.0), (-20.0, -1.0, 0.0, 0.0), weights=[0.2, 0.6])
    assert float(Sft(coupled=True)(found, StepCounts(2, 12))) == pytest.approx(0.4 * 30 / 12)


def test_the_means_are_over_the_scored_tokens_of_each_side(logps):
    chosen, rejected = mean_logps(logps(PAIR, tokens=TOKENS))
    assert (chosen.tolist(), rejected.tolist()) == ([-0.5], [-2.0])


def test_simpo_wants_the_rewards_apart_by_gamma(logps):
    found = Simpo(2.0, simpo_gamma=0.5)(logps(PAIR, tokens=TOKENS), ONE)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-(2 * 1.5 - 0.5))))


def test_label_smoothing_of_simpo_is_conservative(logps):
    found = Simpo(2.0, simpo_gamma=0.5, label_smoothing=0.1)(logps(PAIR, tokens=TOKENS), ONE)
    assert float(found) == pytest.approx(0.9 * math.log(1 + math.exp(-2.5)) + 0.1 * math.log(1 + math.exp(2.5)))


def test_orpo_is_the_sft_loss_and_lambda_times_that_of_the_odds_ratio(logps):
    ratio = odds(math.exp(-0.5)) / odds(math.exp(-2))
    expected = 2 / 4 + 0.1 * math.log(1 + 1 / ratio)
    assert float(Orpo(0.1)(logps(PAIR, tokens=TOKENS), ONE)) == pytest.approx(expected)


def test_responses_that_are_certain_or_impossible_have_finite_odds_and_slopes(logps):
    rows = [(0.0, 0.0, 0.0, 0.0), (-1e-9, -1e4, 0.0, 0.0), (-1e4, -1e-9, 0.0, 0.0)]
    slope = derivative(Orpo(0.1), logps(*rows), StepCounts(3, 3))
    assert math.isfinite(slope.loss)
    assert slope.chosen.isfinite().all()
    assert slope.rejected.isfinite().all()
    # 1 / (1 − p), which the slope of p itself undoes; that of the impossible one is 1.
    assert slope.rejected[2].item() == pytest.approx(0.1 / 3 * 1e9, rel=1e-6)
    assert slope.chosen[2].item() == pytest.approx(-1 / 3 - 0.1 / 3)


@pytest.mark.parametrize("loss", [Sft(), Simpo(2.0), Orpo(0.1)])
def test_the_reference_is_nothing_to_them(logps, loss):
    assert loss.reference_free
    first, second = (float(loss(logps(row, tokens=TOKENS), ONE)) for row in (PAIR, OTHER_REFERENCE))
    assert first == second
