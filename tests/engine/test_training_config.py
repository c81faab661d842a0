from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from engine.config import Runtime
from engine.models.lora import Lora
from engine.preferences.batching import BatchPlan
from engine.sources import Sources
from engine.stage import Context, Listener
from engine.training.loop import Optimization
from engine.training_config import LoraConfig, TrainingConfig, has_checkpoint, upkeep


def test_a_checkpoint_is_something_to_go_on_from_and_half_of_one_is_not(tmp_path):
    assert not has_checkpoint(tmp_path)
    (tmp_path / ".checkpoints" / ".step-00000001").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    (tmp_path / ".checkpoints" / "step-00000001").mkdir()
    assert has_checkpoint(tmp_path)


def test_the_plan_is_over_the_rows_there_are():
    assert TrainingConfig(batch_size=4, epochs=3, seed=7).plan(10) == BatchPlan(10, 4, 3, 7)


def test_the_optimization_is_the_configs_and_the_rest_the_projects():
    config = TrainingConfig(learning_rate=1e-3, schedule="cosine", warmup_share=0.2, max_grad_norm=0.5)
    expected = Optimization(1e-3, "cosine", 0.2, betas=(0.9, 0.95), weight_decay=0.0, max_grad_norm=0.5)
    assert config.optimization() == expected


def test_the_adapter_is_the_configs():
    assert LoraConfig(rank=2, alpha=3, dropout=0.5, targets=["q_proj"]).lora() == Lora(2, 3.0, 0.5, ["q_proj"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0}, {"learning_rate": 5}, {"warmup_share": 1}, {"epochs": 0}, {"batch_size": 0},
        {"seed": -1}, {"seed": 2**63}, {"seed": True},
    ],
)  # fmt: skip
def test_what_cannot_train_is_refused(wrong):
    with pytest.raises(ValidationError):
        TrainingConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"bias": "all"}])
def test_an_adapter_that_cannot_be_is_refused_and_biases_are_no_choice(wrong):
    with pytest.raises(ValidationError):
        LoraConfig(**wrong)


def test_the_upkeep_of_a_training_run_is_the_runtime_and_the_way_to_whoever_listens(tmp_path):
    class Heard(Listener):
        def progressed(self, stage, done, total, numbers) -> None:
            self.heard = (stage, done, total, dict(numbers))

    listener, sources = Heard(), Sources(tmp_path, network=False)
    runtime = Runtime(checkpoints_kept=7, checkpoint_every_steps=3)
    ctx = Context("train", TrainingConfig(), {}, tmp_path, runtime, sources, listener)
    kept = upkeep(ctx, BatchPlan(10, 4, 3, 7), torch.device("cpu"))
    kept.progress(1, 2, {"loss": 0.5})
    assert listener.heard == ("train", 1, 2, {"loss": 0.5})
    assert (kept.work, kept.checkpoints_kept, kept.checkpoint_every_steps) == (tmp_path, 7, 3)


def test_a_run_is_its_artifact_its_inputs_and_its_plan_and_how_fast_it_goes_is_no_part_of_it(tmp_path):
    scores = SimpleNamespace(digest="d" * 64)

    def kept(plan=None, work="train-key", **runtime):
        ctx = Context("train", TrainingConfig(), {"reference": scores}, tmp_path / work, Runtime(**runtime), None, None)
        return upkeep(ctx, plan or BatchPlan(10, 4, 3, 7), torch.device("cpu"))

    identity = kept().identity
    assert identity == {
        "artifact": "train-key",
        "inputs": {"reference": "d" * 64},
        "plan": {"rows": 10, "batch_size": 4, "epochs": 3, "seed": 7},
    }
    assert kept(checkpoint_every_steps=1, log_every_steps=1, micro_batch_tokens=5, threads=7).identity == identity
    assert kept(BatchPlan(10, 4, 3, 8)).identity != identity != kept(work="train-other").identity
    scores.digest = "e" * 64
    assert kept().identity != identity
    assert kept(compile=True).environment != kept().environment
