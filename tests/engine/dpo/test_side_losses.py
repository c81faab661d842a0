import math

import pytest

from engine.dpo.losses import StepCounts, derivative
from engine.dpo.side_losses import ApoDown, ApoZero, BcoPair, NcaPair, SppoHard

ONE = StepCounts(pairs=1, chosen_tokens=1)
# Logratios 1 and −3; times β = 0.5 they are 0.5 and −1.5.
PAIR = (-10.0, -14.0, -11.0, -11.0)
SAME = (-10.0, -14.0, -10.0, -14.0)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_nca_wants_the_chosen_response_likelier_and_both_no_likelier_than_need_be(logps):
    expected = -math.log(sigma(0.5)) - 0.5 * math.log(sigma(-0.5)) - 0.5 * math.log(sigma(1.5))
    assert float(NcaPair(0.5)(logps(PAIR), ONE)) == pytest.approx(expected)
    assert float(NcaPair(0.5)(logps(SAME), ONE)) == pytest.approx(2 * math.log(2))


def test_bco_classifies_each_response_for_itself(logps):
    expected = -math.log(sigma(0.5)) - math.log(sigma(1.5))
    assert float(BcoPair(0.5)(logps(PAIR), ONE)) == pytest.approx(expected)


def test_sppo_is_least_where_the_logratios_are_one_over_two_beta_and_its_opposite(logps):
    assert float(SppoHard(0.5)(logps(PAIR), ONE)) == pytest.approx((1 - 1) ** 2 + (-3 + 1) ** 2)
    assert float(SppoHard(0.5)(logps((-10.0, -12.0, -11.0, -11.0)), ONE)) == 0


def test_apo_zero_raises_the_chosen_and_lowers_the_rejected_response(logps):
    assert float(ApoZero(0.5)(logps(PAIR), ONE)) == pytest.approx(1 - sigma(0.5) + sigma(-1.5))
    assert float(ApoZero(0.5)(logps(SAME), ONE)) == pytest.approx(1.0)


def test_apo_down_lowers_the_chosen_response_where_the_pair_is_right_and_the_rejected_one_more(logps):
    assert float(ApoDown(0.5)(logps(PAIR), ONE)) == pytest.approx(sigma(0.5) + 1 - sigma(2))
    slope = derivative(ApoDown(0.5), logps(PAIR), ONE)
    assert slope.chosen.item() > 0
    assert slope.rejected.item() > 0
