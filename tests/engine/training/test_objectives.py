import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dpo.loss_table import LOSSES, build
from engine.dpo.losses import WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.models.forward import PLAIN, Forward
from engine.models.lora import trainable_parameters
from engine.models.passes import Passes
from engine.models.scoring import score_pairs
from engine.preferences.pairs import shared_length
from engine.training.objectives import SftObjective

COUNT = 6
ALL = list(range(COUNT))
WAYS = [PLAIN, *(Forward(layout, "fused") for layout in ("packed", "shared", "padded"))]


@pytest.fixture(scope="module")
def preference(make_objective):
    """A policy that has left its reference, and its objective."""
    return moved(*make_objective(COUNT))


def moved(model, objective):
    torch.manual_seed(1)
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.1 * torch.randn_like(value))
    return model, objective


@pytest.fixture(scope="module")
def sft(make_llama, make_pairs):
    return make_llama(), SftObjective([pair.chosen for pair in make_pairs(COUNT)], Passes(PLAIN, 1000, 0))


def step(model, objective, rows=ALL):
    """Loss, metrics and gradient of one optimizer step."""
    loss, metrics = 0.0, {}
    model.zero_grad()
    for part in objective.contributions(model, rows):
        part.surrogate.backward()
        loss += part.loss
        metrics = {name: metrics.get(name, 0.0) + value for name, value in part.metrics.items()}
    return loss, metrics, torch.cat([value.grad.flatten() for value in trainable_parameters(model).values()])


def apart(found, expected):
    """How far two gradients are apart, relative to the second."""
    return float((found - expected).norm() / expected.norm())


def sent(objective, way, budget):
    return replace(objective, passes=Passes(way, budget, 0))


def hold(model, objective, examples=20):
    """Holds the step under any budget, layout and order against the whole step as one plain batch."""
    whole = sent(objective, PLAIN, 10_000)
    assert len(whole.micro_batches(ALL)) == 1
    loss, metrics, gradient = step(model, whole)

    @settings(max_examples=examples, deadline=None)
    @given(order=st.permutations(ALL), budget=st.integers(1, 150), way=st.sampled_from(WAYS))
    def agrees(order, budget, way):
        parted_loss, parted_metrics, parted_gradient = step(model, sent(objective, way, budget), order)
        assert parted_loss == pytest.approx(loss, rel=1e-5)
        assert parted_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert apart(parted_gradient, gradient) < 1e-5

    agrees()


@pytest.mark.parametrize("which", ["preference", "sft"])
def test_any_budget_layout_and_order_give_the_steps_loss_metrics_and_gradient(request, which):
    hold(*request.getfixturevalue(which))


@dataclass(frozen=True)
class Ranked:
    """Sigmoid losses in which every margin counts by its rank among all margins of the step, the lowest most."""

    preference: bool = True
    coupled: bool = True
    reference_free: bool = False

    def __call__(self, logps, step):
        margins = logps.logratio_margin.sort().values
        weights = torch.arange(len(margins), 0, -1, dtype=margins.dtype) / len(margins)
        return -torch.nn.functional.logsigmoid(weights * margins).sum() / step.pairs


def losses_of(*terms, **shared):
    """The loss of a config whose terms are names and weights, with a loss's parameters where it needs one."""
    smoothing = {"exo_pair": 0.1, "robust": 0.2, "aot": 0.1}
    given = [
        {"name": name, "weight": weight} | ({"label_smoothing": smoothing[name]} if name in smoothing else {})
        for name, weight in terms
    ]
    return build({"beta": 0.1, "loss": given, **shared})


MPO = (("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0))
WEIGHTED = [
    losses_of(*MPO, ld_alpha=0.5),
    losses_of(*MPO, use_weighting=True),
    losses_of(("aot", 1.0), ("sft", 0.5), ld_alpha=0.0),
    losses_of(*MPO[::2], ld_alpha=0.3, use_weighting=True, f_divergence_type="js_divergence"),
]


@pytest.mark.parametrize("loss", WEIGHTED, ids=["LD", "WPO", "LD, sorted", "all of it"])
def test_token_weights_and_pair_weights_are_the_same_for_any_budget_layout_and_order(preference, loss):
    model, objective = preference
    hold(model, replace(objective, loss=loss), examples=8)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_same_for_any_budget_and_layout(preference, name):
    model, objective = preference
    hold(model, replace(objective, loss=losses_of((name, 1.0))), examples=3)


@pytest.mark.parametrize("loss", WEIGHTED, ids=["LD", "WPO", "LD, sorted", "all of it"])
def test_the_gradient_under_weights_is_that_of_autograd_through_the_whole_step(preference, loss):
    model, objective = preference
    objective = replace(objective, loss=loss)
    _, _, gradient = step(model, sent(objective, WAYS[1], 40))
    model.zero_grad()
    objective.loss(sent(objective, PLAIN, 10_000).logps(model, ALL), objective.counts(ALL)).backward()
    expected = torch.cat([value.grad.flatten() for value in trainable_parameters(model).values()])
    assert apart(gradient, expected) < 1e-5


def test_under_ld_dpo_rewards_are_of_the_weighted_sums_and_all_else_is_of_the_plain_ones(preference):
    model, objective = preference
    scores = score_pairs(model, objective.pairs, objective.passes)
    start = [score.sums(0.5) for score in scores]  # any reference will do, as long as its two sums differ
    ref = torch.tensor(start, dtype=torch.float64) + 1.0
    objective = replace(objective, loss=losses_of(("sigmoid", 1.0), ld_alpha=0.5), ref=ref, whole_ref=ref - 7.0)
    _, metrics, _ = step(model, objective)
    whole = [score.sums() for score in scores]
    assert metrics["rewards/chosen"] == pytest.approx(-0.1, rel=1e-4)
    for side, name in enumerate(("chosen", "rejected")):
        plain = sum(each[side] for each in whole) / COUNT
        assert metrics[f"logps/{name}"] == pytest.approx(plain, rel=1e-5)
        ratios = [
            (each[side] - weighted[side] + 6.0) / getattr(pair, name).scored_tokens
            for each, weighted, pair in zip(whole, start, objective.pairs, strict=True)
        ]
        assert metrics[f"log_ratio_per_token/{name}"] == pytest.approx(sum(ratios) / COUNT, rel=1e-4)
    assert abs(sum(each[0] - weighted[0] for each, weighted in zip(whole, start, strict=True))) > 1


def test_weighted_sums_without_the_plain_ones_of_the_reference_are_no_ground_for_log_ratios(preference):
    model, objective = preference
    objective = replace(objective, loss=losses_of(("sigmoid", 1.0), ld_alpha=0.5), whole_ref=None)
    with pytest.raises(ValueError, match="plain ones of the reference are not known"):
        step(model, objective)


def test_without_a_reference_rewards_are_of_the_mean_logp_a_token_and_there_are_no_log_ratios(preference):
    model, objective = preference
    free = replace(objective, ref=torch.zeros(COUNT, 2, dtype=torch.float64), loss=losses_of(("simpo", 1.0)))
    _, metrics, _ = step(model, free)
    scores = score_pairs(model, objective.pairs, objective.passes)
    means = [score.chosen_logps / len(score.chosen_token_logps) for score in scores]
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * sum(means) / COUNT, rel=1e-5)
    assert not any(name.startswith("log_ratio") for name in metrics)


def test_a_loss_that_sorts_the_steps_margins_has_the_same_gradient_for_any_budget_layout_and_order(preference):
    model, objective = preference
    hold(model, replace(objective, loss=WeightedSum([(1.0, Ranked()), (0.5, Sigmoid(0.1))])))


def test_the_gradient_of_a_loss_that_sorts_is_that_of_autograd_through_the_whole_step(preference):
    model, objective = preference
    objective = replace(objective, loss=WeightedSum([(1.0, Ranked())]))
    _, _, gradient = step(model, sent(objective, WAYS[1], 40))
    model.zero_grad()
    objective.loss(sent(objective, PLAIN, 10_000).logps(model, ALL), objective.counts(ALL)).backward()
    expected = torch.cat([value.grad.flatten() for value in trainable_parameters(model).values()])
    assert apart(gradient, expected) < 1e-5


def test_a_loss_that_sorts_and_says_it_does_not_is_wrong_so_the_tests_above_tell(preference):
    model, objective = preference
    liar = replace(objective, loss=WeightedSum([(1.0, Ranked(coupled=False))]))
    _, _, gradient = step(model, sent(liar, PLAIN, 10_000))
    assert apart(step(model, sent(liar, PLAIN, 40))[2], gradient) > 0.01


@pytest.fixture
def counted(preference, monkeypatch):
    """The objective's model, and the calls of it."""
    model, objective = preference
    calls, forward = [], model.get_base_model().model.forward
    monkeypatch.setattr(
        model.get_base_model().model,
        "forward",
        lambda *given, **named: calls.append(torch.is_grad_enabled()) or forward(*given, **named),
    )
    return model, objective, calls


@pytest.mark.parametrize("coupled, passes", [(False, "g g g"), (True, "n n n g g g")])
def test_a_loss_that_couples_pairs_takes_a_pass_without_gradient_first_and_others_stream(counted, coupled, passes):
    model, objective, calls = counted
    objective = sent(replace(objective, loss=WeightedSum([(1.0, Ranked(coupled=coupled))])), WAYS[1], 1)
    step(model, objective, [0, 1, 2])
    assert " ".join("g" if grad else "n" for grad in calls) == passes
    calls.clear()
    step(model, replace(objective, passes=Passes(WAYS[1], 1000, 0)), [0, 1, 2])
    assert calls == [True]  # one micro-batch is the whole step


def test_under_dropout_both_passes_of_a_loss_that_couples_pairs_see_the_same_draws(make_objective):
    model, objective = moved(*make_objective(COUNT, dropout=0.3, budget=40))
    assert len(objective.micro_batches(ALL)) > 1
    found = []
    for seed, coupled in ((4, False), (4, True), (5, True)):
        torch.manual_seed(seed)
        loss = WeightedSum([(1.0, (AtOnce if coupled else Sigmoid)(0.1))])
        found.append((*step(model, replace(objective, loss=loss)), torch.get_rng_state()))
    (loss, metrics, gradient, state), same, other = found
    assert same[0] == pytest.approx(loss, rel=1e-12)
    assert same[1] == metrics
    assert apart(same[2], gradient) < 1e-6
    assert same[3].equal(state)  # and what comes next draws what it would have drawn
    assert apart(other[2], gradient) > 0.01


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("bad", ALL)
def test_a_loss_that_is_no_number_is_blamed_on_the_pairs_that_made_it_so(preference, coupled, bad):
    model, objective = preference
    ref = objective.ref.clone()
    ref[bad, 0] = math.nan
    objective = replace(objective, ref=ref, loss=WeightedSum([(1.0, (AtOnce if coupled else Sigmoid)(0.1))]))
    parts = list(sent(objective, WAYS[1], 40).contributions(model, ALL))
    assert [list(part.rows) for part in parts if not math.isfinite(part.loss)] == [[bad]]


@dataclass(frozen=True)
class Endless:
    """A loss that is infinite by itself."""

    preference: bool = True
    coupled: bool = True
    reference_free: bool = False

    def __call__(self, logps, step):
        return logps.policy_chosen.sum() + math.inf


@dataclass(frozen=True)
class AtOnce(Sigmoid):
    """A sum over pairs that asks for all of them at once: both ways mean the same."""

    coupled: ClassVar[bool] = True


def test_a_coupled_loss_that_is_infinite_of_sound_pairs_is_blamed_on_the_whole_step(preference):
    model, objective = preference
    objective = sent(replace(objective, loss=WeightedSum([(1.0, Endless())])), PLAIN, 40)
    assert list(next(objective.contributions(model, ALL)).rows) == ALL


def test_logps_without_gradient_come_in_the_order_of_the_rows_and_not_of_the_micro_batches(preference):
    model, objective = preference
    objective = replace(objective, loss=WeightedSum(objective.loss.terms, ld_alpha=0.5, use_weighting=True))
    rows = [4, 0, 5, 2]
    together = sent(objective, WAYS[1], 40).all_logps(model, rows)
    assert not together.policy_chosen.requires_grad
    for place, row in enumerate(rows):
        with torch.no_grad():
            alone = objective.logps(model, [row])
        for field in fields(alone):
            here, there = getattr(together, field.name), getattr(alone, field.name)
            assert float(here[place]) == pytest.approx(float(there), abs=1e-4), field.name


def test_the_sft_loss_is_the_mean_over_the_steps_scored_tokens(sft):
    model, objective = sft
    values = []
    with torch.no_grad():
        for row in objective.examples:
            ids = torch.from_numpy(row.input_ids).long()
            logps = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            values += [float(logps[at - 1, ids[at]]) for at in range(1, len(ids)) if row.label_mask[at]]
    for way in WAYS:
        assert step(model, sent(objective, way, 30))[0] == pytest.approx(-sum(values) / len(values), rel=1e-5)


def test_the_preference_loss_is_the_mean_over_pairs_beside_an_sft_term_over_tokens(preference):
    model, objective = preference
    with torch.no_grad():
        logps = objective.logps(model, ALL)
    margins = (0.1 * logps.logratio_margin).tolist()
    tokens = sum(pair.chosen.scored_tokens for pair in objective.pairs)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / COUNT
    expected -= float(logps.policy_chosen.sum()) / tokens
    loss, metrics, _ = step(model, sent(objective, PLAIN, 40))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(sum(margins) / COUNT, rel=1e-4, abs=1e-5)
    assert set(metrics) == {
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
        "log_ratio_per_token/chosen", "log_ratio_per_token/rejected",
    }  # fmt: skip


@pytest.mark.parametrize("which", ["preference", "sft"])
def test_micro_batches_hold_every_row_of_the_step_once(request, which):
    _, objective = request.getfixturevalue(which)
    parts = sent(objective, PLAIN, 30).micro_batches([5, 1, 3, 0])
    assert sorted(row for part in parts for row in part) == [0, 1, 3, 5]
    assert len(parts) > 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.layout)
def test_a_steps_tokens_are_those_of_the_layout_without_its_padding(preference, sft, way):
    objective, rows = sent(preference[1], way, 40), [4, 1]
    pairs = [objective.pairs[row].rows for row in rows]
    whole = sum(len(side) for sides in pairs for side in sides)
    once = whole - sum(shared_length(sides) for sides in pairs)
    assert objective.tokens(rows) == (once if way.layout in ("packed", "shared") else whole)
    assert once < whole
    assert sent(sft[1], way, 40).tokens(rows) == sum(len(sft[1].examples[row]) for row in rows)


def test_rows_are_named_by_their_pairs(preference, sft):
    assert preference[1].describe([2, 0]) == "pairs id2, id0"
    assert sft[1].describe([2, 0]) == "sft examples 2, 0"


def test_a_step_tells_how_far_a_scored_token_left_the_reference_as_a_mean_over_pairs(preference):
    model, objective = preference
    _, metrics, _ = step(model, objective)
    logps = objective.all_logps(model, ALL)
    for side, logratio in (("chosen", logps.chosen_logratio), ("rejected", logps.rejected_logratio)):
        tokens = torch.tensor([getattr(objective.pairs[row], side).scored_tokens for row in ALL])
        assert metrics[f"log_ratio_per_token/{side}"] == pytest.approx(float((logratio / tokens).mean()), rel=1e-4)
        assert len(set(tokens.tolist())) > 1
