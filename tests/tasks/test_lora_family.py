"""The kinds of adapters, through the stages that train them and those that read what they left."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from engine.config import load
from engine.errors import ConfigError, ModelError
from engine.models.loading import Place, load_model
from engine.models.merging import load_policy
from engine.pipeline import Pipeline, Selection
from engine.toml_text import to_toml
from tasks import SHARED, STAGES

IDS = torch.tensor([[1, 5, 9, 20, 33]])
PLAIN = "train.lora.dropout=0"


def adapter_bytes(made, name="adapter"):
    return made.file(f"{name}/adapter_model.safetensors").read_bytes()


def config_of(made, name="adapter"):
    return json.loads(made.file(f"{name}/adapter_config.json").read_text())


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def on(folder, adapter):
    """The model in a folder under a sealed adapter."""
    return PeftModel.from_pretrained(load_model(Place(str(folder)), dtype="float32"), str(adapter))


@pytest.fixture
def with_sft_adapter(tiny):
    """Overrides under which the sft stage makes an adapter on a base, and train goes on with it."""
    base = tiny.artifact("sft").file("policy")
    return (f"model.name={base}", "sft.method=lora", "train.lora.start=sft", PLAIN)


@pytest.mark.parametrize(
    "kind",
    ["train.lora.rslora=true", "train.lora.dora=true", "train.lora.init=pissa", "train.lora.init=olora"],
)
@pytest.mark.slow
def test_every_kind_starts_as_no_change_learns_and_is_judged(tiny, kind):
    pipeline = tiny.run(PLAIN, kind, "train.lora.plus_ratio=4", until="evaluate")
    made, evaluated = pipeline.artifacts["train"], pipeline.artifacts["evaluate"]
    assert made.metrics["step0_max_margin"] <= 1e-5
    policy = load_model(Place(str(tiny.artifact("sft").file("policy"))), dtype="float32")
    before = logits(policy)
    after = on(tiny.artifact("sft").file("policy"), made.file("adapter"))
    assert not logits(after).allclose(before, atol=1e-3)
    with after.disable_adapter():
        assert logits(after).equal(before)
    assert config_of(made)["init_lora_weights"] is True
    assert 0 <= evaluated.metrics["eval_rewards/accuracies"] <= 1


def test_an_adapter_of_the_weights_directions_is_sealed_on_the_policy_as_it_was(tiny):
    made = tiny.artifact("train", PLAIN, "train.lora.init=pissa")
    config, saved = config_of(made), load_file(made.file("adapter/adapter_model.safetensors"))
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 8.0, True)
    assert {len(value) for name, value in saved.items() if "lora_A" in name} == {4}
    assert made.metrics["step0_max_margin"] <= 1e-5
    assert made.metrics["trainable_parameters"] * 2 == sum(value.numel() for value in saved.values())
    assert not (made.path / "continued").exists()


@pytest.mark.parametrize(
    "kind",
    [("train.lora.init=pissa_niter_2", "train.lora.plus_ratio=16", PLAIN), ("train.lora.dora=true",)],
    ids=["pissa with lora plus", "dora with dropout"],
)
def test_after_a_kill_any_kind_ends_as_if_nothing_had_happened(tiny, killed_and_resumed, kind):
    overrides = ("train.seed=81", *kind)
    pipeline = killed_and_resumed("train", 4, *overrides)
    assert pipeline.decisions["train"].action == "resume"
    resumed = adapter_bytes(pipeline.artifacts["train"])
    tiny.run(*overrides, only="train", force=True)
    assert adapter_bytes(tiny.artifact("train", *overrides)) == resumed


def test_the_sfts_adapter_goes_on_against_the_scores_of_the_policy_it_made(tiny, with_sft_adapter):
    made, sft = tiny.artifact("train", *with_sft_adapter), tiny.artifact("sft", *with_sft_adapter)
    assert made.metrics["step0_max_margin"] <= made.metrics["step0_tolerance"] < 1e-3
    assert (config_of(sft)["r"], config_of(made)["r"], config_of(made, "continued")["r"]) == (2, 4, 2)
    assert config_of(made)["base_model_name_or_path"] == f"artifacts/sft/{sft.key}/policy"
    base = with_sft_adapter[0].partition("=")[2]
    assert config_of(made, "continued")["base_model_name_or_path"] == base
    on_policy = on(sft.file("policy"), made.file("adapter"))
    on_base = load_policy(Place(base), Place(str(made.file("continued"))), dtype="float32")
    torch.testing.assert_close(logits(on_policy), logits(on_base), rtol=1e-3, atol=1e-4)
    assert not logits(on_policy).allclose(
        logits(load_model(Place(str(sft.file("policy"))), dtype="float32")), atol=1e-3
    )


def test_a_given_sft_adapter_goes_on_as_the_made_one_does(tiny, with_sft_adapter):
    made, sft = tiny.artifact("train", *with_sft_adapter), tiny.artifact("sft", *with_sft_adapter)
    given = (with_sft_adapter[0], f"model.policy={sft.file('adapter')}", *with_sft_adapter[2:])
    other = tiny.artifact("train", *given)
    for name, value in load_file(made.file("continued/adapter_model.safetensors")).items():
        again = load_file(other.file("continued/adapter_model.safetensors"))[name]
        torch.testing.assert_close(again, value, rtol=1e-3, atol=1e-3)


def test_without_an_adapter_to_go_on_with_it_is_refused_before_anything_is_trained(tiny, with_sft_adapter):
    with pytest.raises(ConfigError, match="goes on training the SFT's adapter"):
        tiny.plan("train.lora.start=sft", PLAIN)
    with pytest.raises(ConfigError, match="goes on training the SFT's adapter") as caught:
        tiny.artifact("train", with_sft_adapter[0], "train.lora.start=sft", PLAIN)
    assert 'sft.method = "lora"' in caught.value.fix


def test_another_shape_than_the_sft_adapters_is_refused_before_there_is_one(tiny, with_sft_adapter):
    with pytest.raises(ConfigError, match=r"train\.lora\.rank is not that of the adapter"):
        tiny.plan(*with_sft_adapter, "train.lora.rank=4")
    with pytest.raises(ModelError, match="cannot go on being trained as it is"):
        tiny.plan(*with_sft_adapter, "sft.lora.dora=true")


def test_a_profile_with_every_key_in_force_trains_what_the_short_one_does(tiny, with_sft_adapter):
    given = (*with_sft_adapter[:2], 'train.lora={start="sft"}')
    short = tiny.run(*given, until="train")
    tables = tiny.settings(*given).as_dict()
    tables.pop("profile")
    tiny.write("full.toml", tables).write_text(to_toml(tables))
    full = Pipeline(STAGES, load(str(tiny.root / "full.toml"), [], STAGES, SHARED), Selection(until="train"))
    decisions = {decision.stage: decision for decision in full.plan()}
    assert decisions["train"].action == "reuse"
    assert decisions["train"].key == short.artifacts["train"].key


def test_a_tied_head_is_refused_before_an_sft_is_trained_into_it(tiny, with_sft_adapter):
    """A model that is made here has one matrix for both."""
    with pytest.raises(ModelError, match="a weight that has two uses"):
        tiny.artifact("sft", *with_sft_adapter, "sft.lora.targets=['lm_head']")


@pytest.mark.parametrize("stage", ["sft", "train"])
def test_under_lora_plus_b_moves_faster_than_a(tiny, stage):
    base = tiny.artifact("sft").file("policy")
    overrides = (f"model.name={base}", "sft.method=lora", f"{stage}.learning_rate=1e-4")

    def moved(ratio):
        made = tiny.artifact(stage, *overrides, f"{stage}.lora.plus_ratio={ratio}")
        saved = load_file(made.file("adapter/adapter_model.safetensors"))
        return max(value.abs().max().item() for name, value in saved.items() if "lora_B" in name)

    assert moved(16) > 8 * moved(0) > 0


def test_an_adapter_that_trained_biases_is_refused_before_anything_runs(tiny, with_sft_adapter):
    sft = tiny.artifact("sft", *with_sft_adapter)
    folder = tiny.root / "biased"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config_of(sft) | {"bias": "all"}))
    with pytest.raises(ModelError, match="trained biases"):
        tiny.plan(with_sft_adapter[0], f"model.policy={folder}")


@pytest.mark.parametrize("init", ["pissa", "orthogonal"])
def test_an_sft_adapter_that_starts_apart_is_kept_on_the_base_as_it_was(tiny, init):
    base = tiny.artifact("sft").file("policy")
    overrides = (f"model.name={base}", "sft.method=lora", f"sft.lora.init={init}", "sft.lora.dropout=0")
    made = tiny.artifact("sft", *overrides)
    merged = load_policy(Place(str(base)), Place(str(made.file("adapter"))), dtype="float32")
    policy = load_model(Place(str(made.file("policy"))), dtype="float32")
    torch.testing.assert_close(logits(merged), logits(policy), rtol=1e-4, atol=1e-5)
    assert not logits(policy).allclose(logits(load_model(Place(str(base)), dtype="float32")), atol=1e-3)
