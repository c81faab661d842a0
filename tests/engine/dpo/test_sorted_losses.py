import math

import pytest

from engine.dpo.losses import StepCounts, derivative
from engine.dpo.sorted_losses import Aot, AotUnpaired

TWO = StepCounts(pairs=2, chosen_tokens=2)
# Policy margins 1 and 5, of the reference 3 and 0: sorted, 1 stands against 0 and 5 against 3.
PAIRS = [(-2.0, -3.0, -2.0, -5.0), (-1.0, -6.0, -4.0, -4.0)]


def loss(x: float, smoothing: float = 0.0) -> float:
    return (1 - smoothing) * math.log(1 + math.exp(-x)) + smoothing * math.log(1 + math.exp(x))


def test_the_smallest_margin_of_the_policy_is_held_against_the_smallest_of_the_reference(logps):
    assert float(Aot(0.5)(logps(*PAIRS), TWO)) == pytest.approx((loss(0.5) + loss(1.0)) / 2)
    smooth = Aot(0.5, label_smoothing=0.2)(logps(*PAIRS), TWO)
    assert float(smooth) == pytest.approx((loss(0.5, 0.2) + loss(1.0, 0.2)) / 2)


def test_unpaired_the_sorted_chosen_logratios_are_held_against_the_sorted_rejected_ones(logps):
    # Chosen logratios 0 and 3, rejected 2 and −2: 0 against −2, 3 against 2.
    assert float(AotUnpaired(0.5)(logps(*PAIRS), TWO)) == pytest.approx((loss(1.0) + loss(0.5)) / 2)
    smooth = AotUnpaired(0.5, label_smoothing=0.2)(logps(*PAIRS), TWO)
    assert float(smooth) == pytest.approx((loss(1.0, 0.2) + loss(0.5, 0.2)) / 2)


def test_which_reference_goes_with_which_pair_is_nothing_to_them(logps):
    first, second = PAIRS
    exchanged = [(*first[:2], *second[2:]), (*second[:2], *first[2:])]
    assert float(Aot(0.5)(logps(*exchanged), TWO)) == pytest.approx(float(Aot(0.5)(logps(*PAIRS), TWO)))


def test_each_pair_gets_the_slope_of_its_rank(logps):
    slope = derivative(Aot(0.5), logps(*reversed(PAIRS)), TWO)
    expected = [-0.5 / 2 / (1 + math.exp(x)) for x in (1.0, 0.5)]
    assert slope.chosen.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [Aot, AotUnpaired])
def test_they_say_that_they_couple_pairs_and_so_cannot_be_taken_in_parts(logps, kind):
    whole = logps(*PAIRS)
    parts = sum(float(kind(0.5)(whole.at([row]), TWO)) for row in range(2))
    assert kind(0.5).coupled
    assert parts != pytest.approx(float(kind(0.5)(whole, TWO)))
