import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.dpo.loss_table import LOSSES, build
from engine.dpo.losses import PairLogps, StepCounts, WeightedSum, derivative
from engine.dpo.margin_losses import Hinge, Sigmoid
from engine.dpo.reference_free import Sft, Simpo

PAIRS = [(-10.0, -12.0, -11.0, -11.0), (-4.0, -9.0, -5.0, -7.0), (-8.0, -3.0, -6.0, -3.5)]
TOKENS = [(4, 6), (2, 3), (5, 1)]
STEP = StepCounts(pairs=3, chosen_tokens=11)
MIX = WeightedSum([(1.0, Sigmoid(0.3)), (0.5, Sft())])


def test_some_of_the_pairs_are_those_pairs_with_all_they_have(logps):
    found = logps(*PAIRS, tokens=TOKENS, weights=[0.1, 0.2, 0.3]).at([2, 0])
    assert found.policy_chosen.tolist() == [-8.0, -10.0]
    assert found.rejected_tokens.tolist() == [1, 6]
    assert found.weights.tolist() == [0.3, 0.1]
    assert found.whole_chosen is None


def test_parts_joined_are_the_whole(logps):
    whole = logps(*PAIRS, tokens=TOKENS, whole_chosen=[-1.0, -2.0, -3.0])
    joined = PairLogps.joined([whole.at([0]), whole.at([1, 2])])
    assert torch.equal(joined.whole_chosen, whole.whole_chosen)
    assert torch.equal(joined.chosen_tokens, whole.chosen_tokens)
    assert joined.weights is None


def test_the_derivative_is_that_of_the_formula_and_reaches_no_further(logps):
    found = logps((-10.0, -12.0, -10.0, -12.0))
    found.policy_chosen.requires_grad_()
    slope = derivative(Sigmoid(beta=0.1), found, StepCounts(1, 1))
    assert slope.loss == pytest.approx(math.log(2), rel=1e-12)
    assert slope.chosen.tolist() == pytest.approx([-0.05], rel=1e-12)
    assert slope.rejected.tolist() == pytest.approx([0.05], rel=1e-12)
    assert found.policy_chosen.grad is None


def test_the_surrogate_has_the_gradient_of_the_loss(logps):
    first, second = logps(*PAIRS, tokens=TOKENS), logps(*PAIRS, tokens=TOKENS)
    for found in (first, second):
        found.policy_chosen.requires_grad_()
        found.policy_rejected.requires_grad_()
    MIX(first, STEP).backward()
    derivative(MIX, second, STEP).surrogate(second).backward()
    assert torch.allclose(first.policy_chosen.grad, second.policy_chosen.grad, rtol=1e-12)
    assert torch.allclose(first.policy_rejected.grad, second.policy_rejected.grad, rtol=1e-12)


def test_where_sums_are_weighted_the_plain_ones_have_a_slope_of_their_own(logps):
    found = logps(*PAIRS, tokens=TOKENS, whole_chosen=[-20.0, -8.0, -9.0])
    found.whole_chosen.requires_grad_()
    slope = derivative(MIX, found, STEP)
    assert slope.whole.tolist() == pytest.approx([-0.5 / 11] * 3)
    assert slope.chosen.tolist() == pytest.approx(derivative(MIX.preference_part(), found, STEP).chosen.tolist())
    slope.at([1]).surrogate(found.at([1])).backward()
    assert found.whole_chosen.grad.tolist() == pytest.approx([0.0, -0.5 / 11, 0.0])


def test_a_pairs_weight_multiplies_its_loss_and_no_others(logps):
    plain = [float(Hinge(0.1)(logps(row), StepCounts(2, 2))) for row in PAIRS[:2]]
    weighted = Hinge(0.1)(logps(*PAIRS[:2], weights=[0.25, 0.5]), StepCounts(2, 2))
    assert float(weighted) == pytest.approx(0.25 * plain[0] + 0.5 * plain[1])


def test_a_sum_needs_no_reference_only_where_none_of_its_terms_does():
    assert WeightedSum([(1.0, Simpo(2.0)), (1.0, Sft())]).reference_free
    assert not MIX.reference_free


def test_a_sum_is_coupled_where_one_of_its_terms_is():
    assert not MIX.coupled
    assert WeightedSum([(1.0, Sigmoid(0.1)), (1.0, Sft(coupled=True))]).coupled


def test_auxiliary_terms_are_no_preference_and_the_rest_stays():
    loss = WeightedSum([(1.0, Sigmoid(0.1)), (1.0, Sft())], ld_alpha=0.5, use_weighting=True)
    assert loss.preference_part() == WeightedSum([(1.0, Sigmoid(0.1))], ld_alpha=0.5, use_weighting=True)


UNCOUPLED = [name for name in LOSSES if not name.startswith("aot")]
numbers = st.floats(-200, -0.01)
rows_of_pairs = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8)


@pytest.mark.parametrize("name", UNCOUPLED)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_pairs, cuts=st.sets(st.integers(1, 7)))
def test_the_contributions_of_any_micro_batches_add_up_to_the_loss_of_the_step(logps, name, rows, cuts):
    loss = build({"beta": 0.1, "loss": [{"name": name, "weight": 0.7}]})
    whole = logps(*rows, tokens=[(1 + at, 9 - at) for at in range(len(rows))])
    step = StepCounts(len(rows), int(whole.chosen_tokens.sum()))
    places = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    contributions = sum(float(loss(whole.at(range(*ends)), step)) for ends in pairwise(places))
    assert contributions == pytest.approx(float(loss(whole, step)), rel=1e-10, abs=1e-12)


MONOTONE = [name for name in LOSSES if name not in ("apo_down", "ipo", "sppo_hard", "nca_pair", "discopop")]


@pytest.mark.parametrize("name", MONOTONE)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.tuples(numbers, numbers, numbers, numbers))
def test_a_likelier_chosen_response_never_costs_more_nor_does_a_rarer_rejected_one(logps, name, row):
    slope = derivative(build({"beta": 0.1, "loss": [{"name": name, "weight": 1.0}]}), logps(row), StepCounts(1, 1))
    slack = 1e-3 if name == "exo_pair" else 1e-15  # whose least loss is where σ(β·m) = 1 − ε
    assert float(slope.chosen) <= slack
    assert float(slope.rejected) >= -slack


FAR = [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, -1e4), (0.0, 0.0)]
DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
HOW = [(name, "reverse_kl", 0.5) for name in LOSSES]
HOW += [(name, kind, 0.5) for name in DIVERGENT for kind in ("forward_kl", "js_divergence", "alpha_divergence")]
HOW += [(name, "alpha_divergence", 2.0) for name in DIVERGENT]


@pytest.mark.parametrize(("name", "kind", "coefficient"), HOW)
@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_logratios_of_ten_thousand_nats_leave_the_loss_and_its_slopes_finite(logps, name, kind, coefficient, beta):
    spec = {"beta": beta, "loss": [{"name": name, "weight": 1.0}]}
    loss = build(spec | {"f_divergence_type": kind, "f_alpha_divergence_coef": coefficient})
    if loss.reference_free:  # a policy's logps are at most zero; these stand for them
        rows = [(min(chosen, 0.0), min(rejected, 0.0), 0.0, 0.0) for chosen, rejected in FAR]
    else:
        rows = [(chosen - 2e4, rejected - 2e4, -2e4, -2e4) for chosen, rejected in FAR]
    slope = derivative(loss, logps(*rows), StepCounts(len(rows), len(rows)))
    assert math.isfinite(slope.loss)
    assert slope.chosen.isfinite().all()
    assert slope.rejected.isfinite().all()
