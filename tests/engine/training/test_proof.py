import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.dpo.loss_table import LOSSES, build
from engine.dpo.losses import WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.errors import NumericsError
from engine.models.lora import trainable_parameters
from engine.models.scoring import score_pairs
from engine.training.proof import prove_step_zero, rows_to_prove, tolerance

ROWS = [0, 3, 4, 7]


def prove(model, objective, rows=ROWS, dtype="float32"):
    return prove_step_zero(model, objective, rows, dtype=dtype)


def test_a_fresh_adapter_is_its_reference_and_the_preference_loss_is_ln_2(make_objective):
    seen = prove(*make_objective(dropout=0.3))
    assert seen.pairs == 4
    assert seen.max_margin <= seen.max_difference <= 1e-5
    assert seen.expected_loss == pytest.approx(math.log(2), rel=1e-12)  # the sft term of the loss is no part of it
    assert seen.loss == pytest.approx(math.log(2), abs=1e-6)


def test_the_smallest_tolerance_is_told(make_objective):
    model, objective = make_objective()
    sums = objective.ref[ROWS].abs().sum(1)
    assert prove(model, objective).tolerance == pytest.approx(1e-4 + 1e-7 * float(sums.min()))


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(0, 2**63 - 1))
def test_the_longest_the_first_and_two_dozen_drawn_pairs_are_tried(lengths, seed):
    rows = rows_to_prove(lengths, seed)
    assert len(set(rows)) == len(rows) <= 32
    assert set(rows) >= set(range(min(4, len(lengths))))
    assert len(rows) >= min(24, len(lengths))
    assert not lengths or max(lengths) in [lengths[row] for row in rows]
    assert rows == rows_to_prove(lengths, seed)


def test_another_seed_tries_other_pairs_so_that_a_single_stale_one_is_found_as_often_as_is_said():
    tried = [rows_to_prove([1] * 240, seed) for seed in range(400)]
    found = sum(200 in rows for rows in tried) / len(tried)
    assert found == pytest.approx(24 / 240, abs=0.045)  # three standard deviations


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.reference_free])
def test_every_loss_that_has_a_reference_is_at_its_own_value_before_the_first_step(make_objective, name):
    model, objective = make_objective()
    parameters = {"label_smoothing": 0.1} if name in ("exo_pair", "robust") else {}
    objective.loss = build({"beta": 0.1, "loss": [{"name": name, "weight": 2.0, **parameters}]})
    seen = prove(model, objective)
    assert seen.expected_loss == pytest.approx(2 * AT_THE_REFERENCE[name], rel=1e-9)
    assert seen.loss == pytest.approx(seen.expected_loss, abs=1e-4)


LN_2 = math.log(2)
AT_THE_REFERENCE = {
    "sigmoid": LN_2, "hinge": 1.0, "ipo": 25.0, "exo_pair": -LN_2 - math.log(0.1 * 0.9) / 2, "nca_pair": 2 * LN_2,
    "robust": LN_2, "bco_pair": 2 * LN_2, "sppo_hard": 50.0, "aot": LN_2, "aot_unpaired": LN_2, "apo_zero": 1.0,
    "apo_down": 1.0, "discopop": (LN_2 + 1) / 2, "sigmoid_norm": LN_2,
}  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_under_ld_dpo_the_weighted_sums_are_held_against_each_other(make_objective, alpha):
    model, objective = make_objective()
    scores = score_pairs(model, objective.pairs, objective.passes)  # an untrained adapter changes nothing
    objective.ref = torch.tensor([score.sums(alpha) for score in scores], dtype=torch.float64)
    objective.loss = WeightedSum([(1.0, Sigmoid(0.1))], ld_alpha=alpha)
    assert prove(model, objective).max_difference <= 1e-5
    objective.ref[3, 1] += 0.01
    assert failure(model, objective).where == "pair id3"


def test_plain_scores_are_not_the_reference_of_ld_dpo(make_objective):
    model, objective = make_objective()
    objective.loss = WeightedSum([(1.0, Sigmoid(0.1))], ld_alpha=0.5)
    failure(model, objective)


def test_pairs_that_have_weights_are_proved_under_them(make_objective):
    model, objective = make_objective()
    objective.loss = WeightedSum([(1.0, Sigmoid(0.1))], use_weighting=True)
    seen = prove(model, objective)
    weights = objective.all_logps(model, ROWS).weights
    assert seen.expected_loss == pytest.approx(LN_2 * float(weights.mean()), rel=1e-9)
    assert seen.loss == pytest.approx(seen.expected_loss, rel=1e-5)
    assert seen.max_difference <= 1e-5


def failure(model, objective, rows=ROWS, dtype="float32"):
    with pytest.raises(NumericsError, match="before the first step the policy is not the reference") as caught:
        prove(model, objective, rows, dtype)
    return caught.value


def test_scores_of_another_model_are_told_from_stale_ones(make_objective, make_llama):
    model, objective = make_objective()
    base = make_llama(seed=1)  # as if the base had been scored, and not the SFT policy
    scores = score_pairs(base, objective.pairs, objective.passes)
    objective.ref = torch.tensor([[score.chosen_logps, score.rejected_logps] for score in scores], dtype=torch.float64)
    found = failure(model, objective)
    assert "the stored scores are another model's, for example the base's" in found.fix
    assert "4 of the 4 pairs" in found.found


def test_a_stale_score_names_its_pair(make_objective):
    model, objective = make_objective()
    objective.ref[3, 1] += 0.01
    found = failure(model, objective)
    assert found.where == "pair id3"
    assert "the stored scores of this pair are stale" in found.fix
    assert "1 of the 4 pairs" in found.found


def test_scores_that_are_off_by_the_same_on_both_sides_are_found_though_the_margin_is_zero(make_objective):
    model, objective = make_objective()
    objective.ref[3] += 0.01
    assert failure(model, objective).where == "pair id3"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_the_tolerance_passes_and_one_and_a_half_do_not(make_objective, dtype):
    model, objective = make_objective()
    allowed, exact = tolerance(objective.pairs[3], objective.ref[3].tolist(), dtype), objective.ref.clone()
    for side in (0, 1):
        objective.ref = exact.clone()
        objective.ref[3, side] += 0.5 * allowed
        assert prove(model, objective, dtype=dtype).max_difference == pytest.approx(0.5 * allowed, rel=0.2)
        objective.ref[3, side] += allowed
        assert failure(model, objective, dtype=dtype).where == "pair id3"


def test_an_adapter_that_does_not_start_at_zero_is_found(make_objective):
    model, objective = make_objective()
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.01)
    assert "the adapter changes the policy before it is trained" in failure(model, objective).fix


def test_a_layout_that_the_model_cannot_take_is_found(make_objective):
    model, objective = make_objective(budget=200)
    logps = objective.logps
    objective.logps = lambda model, rows: logps(model, rows) if len(rows) == 1 else _shifted(logps(model, rows))
    assert "scores rightly alone and wrongly in a batch" in failure(model, objective).fix


def _shifted(found):
    return replace(found, policy_chosen=found.policy_chosen + 0.1)


@pytest.mark.parametrize("place", range(len(ROWS)))
def test_a_score_that_is_no_number_never_passes(make_objective, place):
    model, objective = make_objective()
    objective.ref[ROWS[place], 0] = math.nan
    assert failure(model, objective).where == f"pair id{ROWS[place]}"


def test_no_gradient_is_left_behind(make_objective):
    model, objective = make_objective()
    prove(model, objective)
    assert all(value.grad is None for value in trainable_parameters(model).values())


def test_the_tolerance_grows_with_the_sums_in_float32_and_with_the_tokens_in_bfloat16(make_pairs):
    pair = make_pairs(1)[0]
    assert tolerance(pair, [-1000.0, -3000.0], "float32") == pytest.approx(1e-4 + 4e-4)
    tokens = pair.chosen.scored_tokens + pair.rejected.scored_tokens
    assert tolerance(pair, [-1000.0, -3000.0], "bfloat16") == pytest.approx(0.1 * math.sqrt(tokens))


def test_in_bfloat16_scores_made_in_other_batches_pass_and_the_bases_do_not(make_llama, make_pairs, make_objective):
    sizes = {"hidden_size": 64, "initializer_range": 0.1}
    model, objective = make_objective(pairs=make_pairs(8, longest=40), budget=400, **sizes)
    scores = score_pairs(make_llama(**sizes).bfloat16(), objective.pairs, replace(objective.passes, budget=1))
    objective.ref = torch.tensor([[score.chosen_logps, score.rejected_logps] for score in scores], dtype=torch.float64)
    model.bfloat16()
    seen = prove(model, objective, range(8), "bfloat16")
    assert seen.max_margin < seen.tolerance / 4  # several times what rounding does
    objective.ref = torch.from_numpy(np.roll(objective.ref.numpy(), 1, axis=0))
    failure(model, objective, range(8), "bfloat16")
