"""The same weights, pairs and order through TRL's DPOTrainer and through this project: the same numbers, step by step.

TRL sums log-probabilities in float32 and this project in float64, hence the tolerance: 1e-5 of max(1, β·|logps|).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.preferences.schema import SCORES, read_table
from engine.preferences.scores import row_key, scored_rows, write_scores

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
TOLERANCE = 1e-5


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("tied", [False, True])
def test_every_step_has_the_numbers_of_trl(
    case: Make, train_here: Make, train_there: Make, assert_same: Make, tied: bool, beta: float
) -> None:
    made = case(tied=tied, beta=beta)
    ours, theirs = train_here(made), train_there(made)
    assert len(ours.steps) == 10
    assert abs(ours.steps[0]["loss"] - ours.steps[-1]["loss"]) > 0.05  # it trained: agreement at rest is no proof
    assert_same(ours, theirs, beta)


def test_training_ends_in_the_adapter_of_trl(
    case: Make, train_here: Make, train_there: Make, assert_same: Make
) -> None:
    made = case()
    ours, theirs = train_here(made), train_there(made)
    assert ours.adapter.keys() == theirs.adapter.keys()
    moved = max(float((ours.adapter[name] - begin).abs().max()) for name, begin in _adapter(made.start).items())
    apart = max(float((ours.adapter[name] - theirs.adapter[name]).abs().max()) for name in ours.adapter)
    assert moved > 5e-3
    assert apart < 1e-2 * moved


def test_a_weighted_list_with_an_sft_term_is_that_of_trl(
    case: Make, train_here: Make, train_there: Make, assert_same: Make
) -> None:
    made = case(terms=(("sigmoid", 1.0), ("sft", 0.5)))
    assert_same(train_here(made), train_there(made), made.beta)


def test_the_stored_scores_are_reference_columns_for_trl(
    case: Make, train_here: Make, train_there: Make, assert_same: Make, tmp_path: Path
) -> None:
    made = case()
    keys = [row_key(pair) for pair in made.pairs]
    rows = scored_rows(keys, made.scores)
    write_scores(tmp_path / "scores.parquet", [pair.pair_id for pair in made.pairs], keys, rows)
    columns = read_table(tmp_path / "scores.parquet", SCORES, ["pair_id", "ref_chosen_logps", "ref_rejected_logps"])
    handed, scored = train_there(made, ref_columns=columns), train_there(made)
    assert handed.steps[0]["loss"] == pytest.approx(scored.steps[0]["loss"], abs=TOLERANCE)
    assert_same(train_here(made), handed, made.beta)


def test_trl_ignores_label_smoothing_for_sigmoid_and_this_project_does_not(
    case: Make, train_here: Make, train_there: Make, assert_same: Make
) -> None:
    plain, smooth = case(count=8), case(count=8, label_smoothing=0.2)
    assert train_there(smooth).steps[0]["loss"] == train_there(plain).steps[0]["loss"]
    assert abs(train_here(smooth).steps[0]["loss"] - train_here(plain).steps[0]["loss"]) > 1e-3


def test_label_smoothing_is_that_of_a_loss_in_which_trl_has_it(
    case: Make, train_here: Make, train_there: Make, assert_same: Make
) -> None:
    """TRL's `aot` sorts the margins of a batch; in a batch of one pair it is conservative DPO."""
    made = case(count=12, batch_size=1, label_smoothing=0.2)
    assert_same(train_here(made), train_there(made, loss_types=["aot"]), made.beta)


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model))
