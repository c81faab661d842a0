import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.lora import trainable_parameters
from engine.training.objectives import SftObjective

CPU = torch.device("cpu")
COUNT = 6


@pytest.fixture(scope="module")
def preference(make_objective):
    """A policy that has left its reference, and its objective."""
    model, objective = make_objective(COUNT)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.1 * torch.randn_like(value))
    return model, objective


@pytest.fixture(scope="module")
def sft(make_llama, make_pairs):
    return make_llama(), SftObjective([pair.chosen for pair in make_pairs(COUNT)], 0, 4, CPU)


def step(model, objective, parts):
    """Loss, metrics and gradient of one optimizer step over `parts`."""
    rows = [row for part in parts for row in part]
    loss, metrics = 0.0, {}
    model.zero_grad()
    for part in parts:
        contribution, numbers = objective(model, part, rows)
        contribution.backward()
        loss += float(contribution.detach())
        metrics = {name: metrics.get(name, 0.0) + value for name, value in numbers.items()}
    return loss, metrics, torch.cat([value.grad.flatten() for value in trainable_parameters(model).values()])


def split(order, cuts):
    places = [0, *sorted(cuts), len(order)]
    return [order[begin:end] for begin, end in pairwise(places)]


@pytest.mark.parametrize("which", ["preference", "sft"])
def test_any_split_into_micro_batches_gives_the_steps_loss_metrics_and_gradient(request, which):
    model, objective = request.getfixturevalue(which)
    loss, metrics, gradient = step(model, objective, [list(range(COUNT))])

    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(COUNT)), cuts=st.sets(st.integers(1, COUNT - 1)))
    def agrees(order, cuts):
        parted_loss, parted_metrics, parted_gradient = step(model, objective, split(order, cuts))
        assert parted_loss == pytest.approx(loss, rel=1e-5)
        assert parted_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert float((parted_gradient - gradient).norm() / gradient.norm()) < 1e-4

    agrees()


def test_the_sft_loss_is_the_mean_over_the_steps_scored_tokens(sft):
    model, objective = sft
    values = []
    with torch.no_grad():
        for row in objective.examples:
            ids = torch.from_numpy(row.input_ids).long()
            logps = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            values += [float(logps[at - 1, ids[at]]) for at in range(1, len(ids)) if row.label_mask[at]]
    loss, _, _ = step(model, objective, [[0, 1, 2], [3, 4, 5]])
    assert loss == pytest.approx(-sum(values) / len(values), rel=1e-5)


def test_the_preference_loss_is_the_mean_over_pairs_beside_an_sft_term_over_tokens(preference):
    model, objective = preference
    with torch.no_grad():
        logps = objective.logps(model, range(COUNT))
    margins = (0.1 * logps.logratio_margin).tolist()
    tokens = sum(pair.chosen.scored_tokens for pair in objective.pairs)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / COUNT
    expected -= float(logps.policy_chosen.sum()) / tokens
    loss, metrics, _ = step(model, objective, [[0, 1], [2, 3, 4, 5]])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(sum(margins) / COUNT, rel=1e-4, abs=1e-5)
    assert set(metrics) == {
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    }  # fmt: skip


@pytest.mark.parametrize("which", ["preference", "sft"])
def test_micro_batches_hold_every_row_of_the_step_once(request, which):
    _, objective = request.getfixturevalue(which)
    parts = objective.micro_batches([5, 1, 3, 0])
    assert sorted(row for part in parts for row in part) == [0, 1, 3, 5]
    assert max(map(len, parts)) <= 4


def test_rows_are_named_by_their_pairs(preference, sft):
    assert preference[1].describe([2, 0]) == "pairs id2, id0"
    assert sft[1].describe([2, 0]) == "sft examples 2, 0"
