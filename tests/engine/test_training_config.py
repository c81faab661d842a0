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
from engine.training_config import LoraConfig, StartedLoraConfig, TrainingConfig, has_checkpoint, upkeep


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
    assert config.optimization(16.0).plus_ratio == 16.0


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


def test_every_kind_of_the_family_reaches_the_engine():
    given = {"rslora": True, "dora": True, "init": "gaussian", "rank_pattern": {"q": 4}, "alpha_pattern": {"v": 2.0}}
    assert LoraConfig(rank=2, alpha=3, **given).lora() == Lora(2, 3.0, 0.0, "all-linear", **given)
    assert StartedLoraConfig(start="sft", plus_ratio=4).lora() == LoraConfig().lora()


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"])
def test_what_needs_the_weights_alone_to_start_is_taken(init):
    assert LoraConfig(init=init).lora().init == init


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ("eva", "activations on data"), ("corda", "activations on data"), ("lora_ga", "gradients on data"),
        ("loftq", "is QLoRA"), ("pissa_niter_", "olora"), ("nonsense", "pissa"),
    ],
)  # fmt: skip
def test_what_needs_data_or_quantises_by_itself_is_refused_with_what_to_do(init, why):
    with pytest.raises(ValidationError, match=why):
        LoraConfig(init=init)


def test_what_is_stated_of_a_shape_is_told_from_the_defaults():
    assert StartedLoraConfig(start="sft", plus_ratio=2).stated() == {}
    stated = StartedLoraConfig(start="sft", rank=8, targets=["q"])
    assert stated.stated() == {"rank": 8, "targets": ["q"]}
    assert StartedLoraConfig(**stated.model_dump()).stated() == stated.stated()


def test_a_shape_that_is_written_out_with_every_default_states_nothing():
    assert StartedLoraConfig(**StartedLoraConfig(start="sft").model_dump()).stated() == {}


@pytest.mark.parametrize("beside", [{"start": "sft"}, {"init": "pissa"}, {"init": "pissa_niter_4"}, {"init": "olora"}])
def test_dropout_is_refused_where_it_would_leave_out_a_part_of_what_is_subtracted(beside):
    with pytest.raises(ValidationError, match="dropout = 0 beside"):
        StartedLoraConfig(dropout=0.1, **beside)
    assert LoraConfig(dropout=0.1, init=beside.get("init", "default")).dropout == 0.1  # an SFT is held against nothing


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_dropout_is_free_where_an_adapter_is_nothing_whatever_goes_in(init):
    assert StartedLoraConfig(dropout=0.1, init=init).dropout == 0.1


@pytest.mark.parametrize("beside", [{"init": "pissa"}, {"dora": True}])
def test_an_adapter_that_goes_on_is_not_made_anew_in_another_way(beside):
    with pytest.raises(ValidationError, match="the adapter that goes on has its weights"):
        StartedLoraConfig(start="sft", **beside)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"bias": "all"}, {"plus_ratio": 0.5}, {"plus_ratio": -1},
        {"plus_ratio": float("inf")}, {"dora": True, "init": "pissa"}, {"init": "orthogonal", "rank": 3},
        {"init": "orthogonal", "rank_pattern": {"q": 3}}, {"rank_pattern": {"q": 0}}, {"alpha_pattern": {"q": 0}},
        {"rank_pattern": {"(": 2}},
    ],
)  # fmt: skip
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
