"""How a stage settles its passes: the trial of the layout, the budget, and what a resumed run keeps of them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import fitting
from engine.config import Runtime
from engine.dpo.losses import WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.errors import MemoryShortageError
from engine.fitting import apply_runtime, scoring_passes, training_passes
from engine.models.forward import Forward
from engine.models.lora import Lora, add_lora, trainable_parameters
from engine.models.passes import Passes
from engine.stage import Context, Listener
from engine.training.checkpoint import Checkpoints
from engine.training.objectives import PreferenceObjective

COUNT = 6


@dataclass(frozen=True)
class Step:
    """What of a config the budget's trial asks for."""

    batch_size: int = 4


@pytest.fixture
def policy(make_llama):
    return add_lora(make_llama(), Lora(2, 4.0, 0.0, "all-linear"), seed=0, base_name="policy")


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(COUNT)


def context(work: Path, **runtime: Any) -> Context[Any]:
    return Context("train", Step(), {}, work, Runtime(**runtime), None, Listener())  # type: ignore[arg-type]


def settled(ctx, policy, pairs, checkpoints=None) -> Passes:
    """The passes of a DPO stage over these pairs."""
    kept = checkpoints or Checkpoints(ctx.work / ".checkpoints", 2)
    ref, loss = torch.zeros(len(pairs), 2, dtype=torch.float64), WeightedSum([(1.0, Sigmoid(0.1))])
    groups = [pair.rows for pair in pairs]
    make = lambda each: PreferenceObjective(pairs, ref, loss, 0.1, each)  # noqa: E731
    return training_passes(ctx, policy, groups, make, 0, kept).passes


def test_a_plain_policy_is_trained_in_packed_rows_within_the_budget(tmp_path, policy, pairs):
    passes = settled(context(tmp_path), policy, pairs)
    assert passes == Passes(Forward("packed", "fused"), 4096, 0)


def test_the_trial_leaves_neither_gradients_nor_other_weights_nor_another_random_state(tmp_path, policy, pairs):
    before = {name: value.detach().clone() for name, value in trainable_parameters(policy).items()}
    state = torch.get_rng_state()
    settled(context(tmp_path), policy, pairs)
    assert torch.get_rng_state().equal(state)
    for name, value in trainable_parameters(policy).items():
        assert value.grad is None
        assert value.equal(before[name])


def test_the_memory_plan_is_told_and_the_peak_recorded(tmp_path, policy, pairs, caplog):
    ctx = context(tmp_path)
    with caplog.at_level(logging.INFO, "dpo"):
        settled(ctx, policy, pairs)
    assert "memory plan: " in caplog.text
    assert "a micro-batch of 4,096 tokens" in caplog.text
    assert ctx.metrics["largest_micro_batch_bytes"] >= 0


def test_a_limit_that_the_longest_pair_breaks_is_an_error_that_names_it(tmp_path, policy, pairs):
    longest = max(pairs, key=lambda pair: len(pair.chosen) + len(pair.rejected))
    for settle in (
        lambda: settled(context(tmp_path, memory_limit_gib=0.001), policy, pairs),
        lambda: scoring_passes(context(tmp_path, memory_limit_gib=0.001), policy, pairs, 0),
    ):
        with pytest.raises(MemoryShortageError) as caught:
            settle()
        assert longest.pair_id in caught.value.where


@pytest.mark.parametrize("setting", ["micro_batch_tokens", "score_batch_tokens"])
def test_a_pair_longer_than_the_budget_goes_alone_and_that_is_said(tmp_path, policy, pairs, caplog, setting):
    ctx = context(tmp_path, **{setting: 1})
    with caplog.at_level(logging.WARNING, "dpo"):
        passes = (
            settled(ctx, policy, pairs) if setting == "micro_batch_tokens" else scoring_passes(ctx, policy, pairs, 0)
        )
    assert f"more than runtime.{setting} = 1: such ones go alone" in caplog.text
    parts = passes.split({row: pair.rows for row, pair in enumerate(pairs)})
    assert sorted(row for [row] in parts for row in [row]) == list(range(COUNT))


class Before:
    """The checkpoints of a run that an earlier attempt left one of."""

    def __init__(self, settled):
        self._before, self.settled = settled, {}

    def settled_before(self):
        return self._before


ASKED = {"micro_batch_tokens": 77, "layout": "padded"}


def test_what_is_settled_goes_into_the_checkpoints_and_a_run_that_goes_on_from_one_keeps_it(
    tmp_path, policy, pairs, monkeypatch
):
    first = Before({})
    found = settled(context(tmp_path, **ASKED), policy, pairs, first)
    assert found == Passes(Forward("padded", "fused"), 77, 0)
    monkeypatch.setattr("engine.models.probe.choose_forward", None)  # nothing is tried again
    again = Before(first.settled)
    assert settled(context(tmp_path, **ASKED), policy, pairs, again) == found
    assert again.settled == first.settled  # so the next checkpoint holds it as well


def test_a_run_that_goes_on_under_other_settings_says_so_and_follows_them(tmp_path, policy, pairs, caplog):
    first = Before({})
    settled(context(tmp_path), policy, pairs, first)
    assert "other passes than before the stop" not in caplog.text
    second = Before(first.settled)
    assert settled(context(tmp_path, micro_batch_tokens=50), policy, pairs, second).budget == 50
    assert "other passes than before the stop" in caplog.text
    assert second.settled["budget"] == 50
    with pytest.raises(MemoryShortageError):
        settled(context(tmp_path, memory_limit_gib=0.001), policy, pairs, Before(first.settled))


def test_an_attempt_that_runs_out_of_memory_leaves_no_gradient_for_the_first_step(policy, pairs):
    @dataclass
    class Breaking:
        inner: PreferenceObjective

        def contributions(self, model, rows):
            yield next(iter(self.inner.contributions(model, rows)))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    ref, loss = torch.zeros(COUNT, 2, dtype=torch.float64), WeightedSum([(1.0, Sigmoid(0.1))])
    passes = Passes(Forward("packed", "fused"), 4096, 0)
    with pytest.raises(torch.OutOfMemoryError):
        fitting._step_of(Breaking(PreferenceObjective(pairs, ref, loss, 0.1, passes)), policy, [0, 1])
    assert all(value.grad is None for value in policy.parameters())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_fullest_micro_batch_is_tried_and_not_the_one_with_the_longest_pair(make_row, layout):
    groups = [(make_row([1], [5] * 20),), *((make_row([1], [number] * 19),) for number in range(6, 16))]
    passes = Passes(Forward(layout, "fused"), 40, 0)
    part = fitting._largest_part(passes, groups, together=4)
    assert sum(len(groups[row][0]) for row in part) == 40


def test_gradient_checkpointing_computes_layers_again_and_scoring_does_not(tmp_path, policy, pairs):
    calls = []
    layer = policy.get_base_model().model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    ctx = context(tmp_path, gradient_checkpointing=True)
    apply_runtime(ctx, policy, training=False)
    objective = PreferenceObjective(
        pairs,
        torch.zeros(COUNT, 2, dtype=torch.float64),
        WeightedSum([(1.0, Sigmoid(0.1))]),
        0.1,
        Passes(Forward("packed", "fused"), 4096, 0),
    )
    for expected in (1, 2):
        calls.clear()
        for part in objective.contributions(policy, range(COUNT)):
            part.surrogate.backward()
        assert len(calls) == expected
        apply_runtime(ctx, policy, training=True)
