"""Whole trainings with every loss of TRL's, through its DPOTrainer and through this project: four steps each.

`test_losses.py` has every loss with every divergence and parameter on logps alone; here they go the way of a training:
LD-DPO from tokens to weighted sums, the weights of WPO out of the head, losses over a step from its micro-batches.
"""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Make = Callable[..., Any]

SMOOTHED = {"exo_pair": 0.1, "robust": 0.2, "aot": 0.1, "aot_unpaired": 0.1}
MPO = (("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0))
LD, WPO = {"ld_alpha": 0.5}, {"use_weighting": True}


@pytest.fixture
def compare(case: Make, train_here: Make, train_there: Make, assert_same: Make) -> Make:
    """Trains four steps both ways, the last with two pairs of four, and holds their numbers against each other."""

    def run(*terms: tuple[str, float], label_smoothing: float = 0.0, **shared: Any) -> None:
        made = case(count=14, terms=terms, label_smoothing=label_smoothing, shared=shared)
        ours, theirs = train_here(made), train_there(made)
        assert len(ours.steps) == 4
        assert_same(ours, theirs, made.beta)
        if shared.get("use_weighting"):  # a few hundredths: what is little beside 1 is much beside them
            for here, there in zip(ours.steps, theirs.steps, strict=True):
                assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
                assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)

    return run


@pytest.mark.parametrize(
    "name",
    [
        "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
        "apo_down", "discopop", "sigmoid_norm",
    ],
)  # fmt: skip
def test_a_training_with_each_loss_is_that_of_trl(compare: Make, name: str) -> None:
    compare((name, 1.0), label_smoothing=SMOOTHED.get(name, 0.0))


def test_a_training_with_the_sft_loss_alone_is_that_of_trl(compare: Make) -> None:
    compare(("sft", 1.0), ("sigmoid", 0.0))  # which counts nothing, and keeps the rewards those against the reference


def test_a_training_with_several_losses_is_that_of_trl(compare: Make) -> None:
    compare(*MPO)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_a_training_under_another_divergence_is_that_of_trl(compare: Make, divergence: str) -> None:
    compare(("sigmoid", 1.0), f_divergence_type=divergence)


@pytest.mark.parametrize("terms", [[("sigmoid", 1.0)], [("ipo", 1.0)], [("aot", 1.0)], MPO], ids=str)
def test_a_training_whose_tails_count_less_is_that_of_trl(compare: Make, terms: Any) -> None:
    compare(*terms, **LD)


@pytest.mark.parametrize("terms", [[("sigmoid", 1.0)], MPO[:2]], ids=str)
def test_a_training_whose_pairs_are_weighed_is_that_of_trl(compare: Make, terms: Any) -> None:
    """Without an sft term: TRL 1.16.0 multiplies its weights into an expanded tensor in place, which torch refuses."""
    compare(*terms, **WPO)


def test_a_training_with_all_of_it_at_once_is_that_of_trl(compare: Make) -> None:
    compare(("sigmoid", 0.5), ("ipo", 0.5), f_divergence_type="js_divergence", **LD, **WPO)
