import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dpo.losses import LOSSES, PairLogps, Sft, Sigmoid, StepCounts, WeightedSum, weighted_sum
from tasks.train import LossTerm

ONE = StepCounts(pairs=1, chosen_tokens=1)


def logps(*rows: tuple[float, float, float, float]) -> PairLogps:
    """Rows of policy chosen, policy rejected, ref chosen, ref rejected."""
    return PairLogps(*torch.tensor(rows, dtype=torch.float64).unbind(-1))


# Logratios 1 and −1, so the difference is 2; times β = 0.5 it is 1.
PAIR = (-10.0, -12.0, -11.0, -11.0)
LOSS_AT_ONE = math.log(1 + math.exp(-1))  # −ln σ(1) = 0.3133
LOSS_AT_MINUS_ONE = math.log(1 + math.exp(1))  # −ln σ(−1) = 1.3133


def test_the_sigmoid_loss_is_the_papers():
    assert float(Sigmoid(beta=0.5)(logps(PAIR), ONE)) == pytest.approx(LOSS_AT_ONE, rel=1e-12)


def test_chosen_and_rejected_swapped_is_the_loss_of_the_opposite_margin():
    swapped = (PAIR[1], PAIR[0], PAIR[3], PAIR[2])
    assert float(Sigmoid(beta=0.5)(logps(swapped), ONE)) == pytest.approx(LOSS_AT_MINUS_ONE, rel=1e-12)


def test_where_policy_is_reference_the_sigmoid_loss_is_ln_2_and_its_slope_half_of_beta():
    found = logps((-10.0, -12.0, -10.0, -12.0))
    found.policy_chosen.requires_grad_()
    loss = Sigmoid(beta=0.1)(found, ONE)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2), rel=1e-12)
    assert found.policy_chosen.grad.tolist() == pytest.approx([-0.05], rel=1e-12)


def test_label_smoothing_is_conservative_dpo():
    expected = 0.9 * LOSS_AT_ONE + 0.1 * LOSS_AT_MINUS_ONE
    assert float(Sigmoid(beta=0.5, label_smoothing=0.1)(logps(PAIR), ONE)) == pytest.approx(expected, rel=1e-12)


def test_with_label_smoothing_a_pair_is_pushed_no_further_than_its_doubt():
    # The conservative loss is least where σ(β·m) = 1 − ε: here β·m = ln 9.
    found = logps((math.log(9), 0.0, 0.0, 0.0))
    found.policy_chosen.requires_grad_()
    Sigmoid(beta=1.0, label_smoothing=0.1)(found, ONE).backward()
    assert found.policy_chosen.grad.tolist() == pytest.approx([0.0], abs=1e-12)


def test_a_margin_of_thousands_of_nats_stays_finite():
    loss = Sigmoid(beta=1.0)(logps((-9000.0, 0.0, 0.0, -9000.0)), ONE)
    assert float(loss) == pytest.approx(18000.0)


def test_the_sft_loss_is_the_negative_mean_over_the_steps_chosen_scored_tokens():
    found = logps((-10.0, -1.0, 0.0, 0.0), (-20.0, -1.0, 0.0, 0.0))
    assert float(Sft()(found, StepCounts(pairs=2, chosen_tokens=12))) == pytest.approx(30 / 12)


numbers = st.floats(-200, 0)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    smoothing=st.floats(0, 0.4),
)
def test_the_contributions_of_any_micro_batches_add_up_to_the_loss_of_the_step(rows, cuts, smoothing):
    loss = WeightedSum([(1.0, Sigmoid(0.1, smoothing)), (0.5, Sft())])
    step = StepCounts(pairs=len(rows), chosen_tokens=3 * len(rows))
    places = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    parts = [rows[begin:end] for begin, end in pairwise(places)]
    contributions = sum(float(loss(logps(*part), step)) for part in parts)
    assert contributions == pytest.approx(float(loss(logps(*rows), step)), rel=1e-12)


def test_a_config_list_becomes_the_weighted_sum():
    terms = [
        {"name": "sigmoid", "weight": 2.0, "label_smoothing": 0.1},
        {"name": "sft", "weight": 0.25, "label_smoothing": 0.0},
    ]
    loss = weighted_sum(terms, beta=0.5)
    assert loss.terms == [(2.0, Sigmoid(0.5, 0.1)), (0.25, Sft())]
    expected = 2 * (0.9 * LOSS_AT_ONE + 0.1 * LOSS_AT_MINUS_ONE) + 0.25 * 10 / 4
    assert float(loss(logps(PAIR), StepCounts(1, 4))) == pytest.approx(expected, rel=1e-12)


def test_auxiliary_terms_are_no_preference():
    loss = WeightedSum([(1.0, Sigmoid(0.1)), (1.0, Sft())])
    assert loss.preference_part() == WeightedSum([(1.0, Sigmoid(0.1))])


def test_the_config_names_every_loss_there_is():
    assert set(get_args(LossTerm.model_fields["name"].annotation)) == set(LOSSES)
