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

TOLERANCE = 1e-5
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
LOGPS = ("logps/chosen", "logps/rejected")


def deviations(ours: Any, theirs: Any, beta: float) -> dict[str, float]:
    """The largest deviation of every number over the steps, relative to what the tolerance is of; also printed."""
    assert len(ours.steps) == len(theirs.steps)
    highest_rate = max(step["learning_rate"] for step in theirs.steps)
    found: dict[str, float] = {}
    for here, there in zip(ours.steps, theirs.steps, strict=True):
        size = max(abs(there[name]) for name in LOGPS)
        scales = {name: max(1.0, beta * size) for name in ("loss", *REWARDS)} | {name: max(1.0, size) for name in LOGPS}
        scales |= {
            "rewards/accuracies": 1.0,
            "grad_norm": max(1.0, there["grad_norm"]),
            "learning_rate": highest_rate,
        }
        for name, scale in scales.items():
            found[name] = max(found.get(name, 0.0), abs(here[name] - there[name]) / scale)
    print({name: f"{value:.1e}" for name, value in found.items()})
    return found


def assert_same(ours: Any, theirs: Any, beta: float) -> None:
    found = deviations(ours, theirs, beta)
    # Gradients of long sums differ more than the sums: clipped to norm 1, they are held to ten times the tolerance.
    bounds = {name: TOLERANCE * (10 if name == "grad_norm" else 1) for name in found}
    assert {name: value for name, value in found.items() if not value <= bounds[name]} == {}


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("tied", [False, True])
def test_every_step_has_the_numbers_of_trl(
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any], tied: bool, beta: float
) -> None:
    made = case(tied=tied, beta=beta)
    ours, theirs = train_here(made), train_there(made)
    assert len(ours.steps) == 10
    assert abs(ours.steps[0]["loss"] - ours.steps[-1]["loss"]) > 0.05  # it trained: agreement at rest is no proof
    assert_same(ours, theirs, beta)


def test_training_ends_in_the_adapter_of_trl(
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any]
) -> None:
    made = case()
    ours, theirs = train_here(made), train_there(made)
    assert ours.adapter.keys() == theirs.adapter.keys()
    moved = max(float((ours.adapter[name] - begin).abs().max()) for name, begin in _adapter(made.start).items())
    apart = max(float((ours.adapter[name] - theirs.adapter[name]).abs().max()) for name in ours.adapter)
    assert moved > 5e-3
    assert apart < 1e-2 * moved


def test_a_weighted_list_with_an_sft_term_is_that_of_trl(
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any]
) -> None:
    made = case(terms=(("sigmoid", 1.0), ("sft", 0.5)))
    assert_same(train_here(made), train_there(made), made.beta)


def test_the_stored_scores_are_reference_columns_for_trl(
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any], tmp_path: Path
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
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any]
) -> None:
    plain, smooth = case(count=8), case(count=8, label_smoothing=0.2)
    assert train_there(smooth).steps[0]["loss"] == train_there(plain).steps[0]["loss"]
    assert abs(train_here(smooth).steps[0]["loss"] - train_here(plain).steps[0]["loss"]) > 1e-3


def test_label_smoothing_is_that_of_a_loss_in_which_trl_has_it(
    case: Callable[..., Any], train_here: Callable[..., Any], train_there: Callable[..., Any]
) -> None:
    """TRL's `aot` sorts the margins of a batch; in a batch of one pair it is conservative DPO."""
    made = case(count=12, batch_size=1, label_smoothing=0.2)
    assert_same(train_here(made), train_there(made, loss_types=["aot"]), made.beta)


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model))
