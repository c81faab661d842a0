import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from engine.errors import ConfigError, ModelError
from engine.models import loading, merging
from engine.models.anchored import save_trained
from engine.models.forward import PLAIN
from engine.models.loading import Place, load_model
from engine.models.lora import Lora, add_lora, trainable_parameters
from engine.models.merging import continue_adapter, load_policy
from engine.models.passes import Passes
from engine.models.scoring import score_pairs

LORA = Lora(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")


def trained_adapter(model, base_name, lora=LORA):
    """An adapter that changes its base."""
    adapted = add_lora(model, lora, seed=0, base_name=str(base_name))
    with torch.no_grad():
        for value in trainable_parameters(adapted).values():
            value.add_(0.05)
    return adapted


def place(path):
    return Place(str(path))


def load(base, policy):
    return load_policy(place(base) if base else None, place(policy), dtype="float32")


@pytest.fixture
def base(make_llama, saved):
    return saved(make_llama(), "base")


@pytest.fixture
def adapter(make_llama, saved, base):
    return saved(trained_adapter(make_llama(), base), "adapter", save_embedding_layers=False)


def changed_config(folder: Path, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_model_is_the_policy_as_it_is(make_llama, base):
    policy = load(None, base)
    assert all(value.equal(policy.state_dict()[name]) for name, value in make_llama().state_dict().items())


def test_the_reference_of_an_adapter_is_the_merged_policy_and_not_its_base(make_llama, make_pairs, base, adapter):
    pairs = make_pairs(3)

    def sums(model):
        scores = score_pairs(model, pairs, Passes(PLAIN, 100, 0))
        return [side for score in scores for side in (score.chosen_logps, score.rejected_logps)]

    policy = load(base, adapter)
    assert not policy.training
    wanted = sums(trained_adapter(make_llama(), base))
    fresh = add_lora(policy, LORA, seed=1, base_name="policy")
    with fresh.disable_adapter():
        assert sums(fresh) == pytest.approx(wanted, abs=1e-3)
    assert sums(load_model(place(base), dtype="float32")) != pytest.approx(wanted, abs=1)


def test_an_adapter_needs_its_base_named(adapter, base):
    with pytest.raises(ModelError, match="is a LoRA adapter and no base is named") as caught:
        load(None, adapter)
    assert f'model.name = "{base}"' in caught.value.fix


def test_an_adapter_of_a_base_with_another_name_is_refused(make_llama, saved, adapter):
    with pytest.raises(ModelError, match="the adapter was trained on another base") as caught:
        load(saved(make_llama(), "another"), adapter)
    assert caught.value.expected.endswith("base")
    assert caught.value.found.endswith("another")


def test_a_base_whose_path_ends_alike_is_another_base(make_llama, saved, adapter):
    """Every policy made here is called `policy`: the last part of a path tells nothing."""
    with pytest.raises(ModelError, match="the adapter was trained on another base"):
        load(saved(make_llama(), "elsewhere/base"), adapter)


@pytest.mark.parametrize("made_on", ["owner/base", "artifacts/sft/0123/policy"])
def test_a_copy_of_the_base_is_taken_where_its_name_tells(make_llama, saved, adapter, made_on):
    changed_config(adapter, base_model_name_or_path=made_on)
    copy = "elsewhere/base" if made_on == "owner/base" else f"a/store/{made_on}"
    load(saved(make_llama(), copy), adapter)
    with pytest.raises(ModelError, match="another base"):
        load(saved(make_llama(), "a/store/artifacts/sft/4567/policy"), adapter)


@pytest.mark.parametrize(
    "other",
    [{"hidden_size": 24}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}],
    ids=["another width", "more layers", "fewer layers"],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused(make_llama, saved, base, other):
    adapted = trained_adapter(
        make_llama(), "owner/base", Lora(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])
    )
    adapter = saved(adapted, "adapter", save_embedding_layers=False)
    with pytest.raises(ModelError, match="the adapter does not fit its base"):
        load(saved(make_llama(**other), "elsewhere/base"), adapter)


def test_an_adapter_that_trained_biases_is_refused(base, adapter):
    changed_config(adapter, bias="all")
    with pytest.raises(ModelError, match="cannot be merged and switched off again"):
        load(base, adapter)


def test_an_adapter_of_another_kind_is_refused(make_llama, saved, base):
    tuned = get_peft_model(make_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="this adapter cannot be merged") as caught:
        load(base, saved(tuned, "prompt", save_embedding_layers=False))
    assert caught.value.found.endswith("PROMPT_TUNING")


def test_an_adapters_pickle_is_never_read(base, adapter):
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="no weights that may be read") as caught:
        load(base, adapter)
    assert caught.value.expected == "adapter_model.safetensors"


def test_a_broken_adapter_is_refused(base, adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="the adapter does not fit its base"):
        load(base, adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="the adapter cannot be loaded"):
        load(base, adapter)


def test_an_adapter_on_the_hub_is_fetched_at_its_commit_and_merged(monkeypatch, base, adapter):
    asked = []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(adapter)

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    policy = load_policy(place(base), Place("owner/adapter", "c" * 40), dtype="float32")
    assert asked == [("owner/adapter", "c" * 40, ["adapter_config.json", "adapter_model.safetensors"])]
    weights = load_policy(place(base), place(adapter), dtype="float32").state_dict()
    assert all(value.equal(weights[name]) for name, value in policy.state_dict().items())


def test_other_peoples_adapters_on_some_layers_only_are_merged(make_llama, saved, base):
    shape = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False)
    folder = saved(get_peft_model(make_llama(), shape), "partial", save_embedding_layers=False)
    before, after = load_model(place(base), dtype="float32").state_dict(), load(base, folder).state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}


IDS = torch.tensor([[1, 5, 9, 20, 33, 2]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def slopes(model):
    out = model(input_ids=IDS).logits.log_softmax(-1)[..., 5].sum()
    return torch.autograd.grad(out, list(trainable_parameters(model).values()))


def continued(base, adapter, **given):
    given = {"stated": {}, "base": str(base), "policy_name": "policy"} | given
    return continue_adapter(load(base, adapter), place(adapter), **given)


def test_an_sft_adapter_goes_on_from_where_it_was_with_the_gradients_it_has_on_its_base(make_llama, base, adapter):
    """What moves is the adapter itself: its gradients on the base, though the reference is the merged policy."""
    on_base, going_on = trained_adapter(make_llama(), base), continued(base, adapter)
    assert set(trainable_parameters(going_on)) == set(trainable_parameters(on_base))
    for _ in range(2):
        torch.testing.assert_close(logits(going_on), logits(on_base), rtol=1e-4, atol=1e-4)
        for one, other in zip(slopes(going_on), slopes(on_base), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        for model in (going_on, on_base):
            with torch.no_grad():
                for number, value in enumerate(trainable_parameters(model).values()):
                    value.add_(0.01 * (number % 3 - 1))


def test_switched_off_a_continued_adapter_is_the_sft_policy_and_never_its_base(base, adapter):
    policy, model = logits(load(base, adapter)), continued(base, adapter)
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.05)
    assert not logits(model).allclose(policy, atol=1e-3)
    with model.disable_adapter():
        assert logits(model).equal(policy)
    assert not policy.allclose(logits(load_model(place(base), dtype="float32")), atol=1e-2)


def test_it_is_sealed_on_the_policy_and_beside_it_on_the_base(base, adapter, tmp_path):
    model = continued(base, adapter)
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.03)
    save_trained(model, tmp_path / "out")
    on_policy = PeftModel.from_pretrained(load(base, adapter), str(tmp_path / "out" / "adapter"))
    on_base = load(base, tmp_path / "out" / "continued")
    torch.testing.assert_close(logits(on_policy), logits(model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(on_base), logits(model), rtol=1e-3, atol=1e-3)
    configs = [json.loads((tmp_path / "out" / name / "adapter_config.json").read_text()) for name in NAMES]
    assert [config["r"] for config in configs] == [8, 4]
    assert [config["base_model_name_or_path"] for config in configs] == ["policy", str(base)]


NAMES = ("adapter", "continued")


def test_its_dropout_is_none_whatever_it_was_and_its_shape_its_own(base, adapter):
    changed_config(adapter, lora_dropout=0.25)
    model = continued(base, adapter, stated={"rank": 4})
    assert model.peft_config["default"].lora_dropout == 0.0
    assert not [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p]
    with pytest.raises(ConfigError, match=r"train\.lora\.rank is not that of the adapter"):
        continued(base, adapter, stated={"rank": 8})


def test_only_a_plain_lora_is_trained_further(base, adapter):
    given = {"stated": {}, "base": "base", "policy_name": "policy"}
    policy = load(base, adapter)
    with pytest.raises(ModelError, match="there is no adapter to train further"):
        continue_adapter(policy, place(base), **given)
    changed_config(adapter, use_dora=True)
    with pytest.raises(ModelError, match="cannot go on being trained as it is"):
        continue_adapter(policy, place(adapter), **given)


def test_an_adapter_on_the_embedding_is_not_trained_further(make_llama, saved, base):
    shape = LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = saved(get_peft_model(make_llama(), shape), "embedding", save_embedding_layers=False)
    with pytest.raises(ModelError, match="cannot go on being trained as it is") as caught:
        continued(base, folder)
    assert "Embedding" in caught.value.found


def test_an_adapter_that_knows_other_tokens_than_its_base_is_refused_before_weights_are_loaded(
    make_llama, saved, base, monkeypatch
):
    """As an SFT leaves it that added tokens: the embedding it resized is saved with the adapter."""
    shape = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = saved(get_peft_model(make_llama(vocab_size=54), shape), "added", save_embedding_layers=True)
    monkeypatch.setattr(merging, "load_model", None)
    with pytest.raises(ModelError, match="the adapter's vocabulary is not its base's") as caught:
        load(base, folder)
    assert caught.value.expected.startswith("50 tokens")
    assert caught.value.found.startswith("54 tokens")
    assert "model.policy" in caught.value.fix


def test_modules_that_an_sft_trained_whole_are_in_the_policy(make_llama, saved, base):
    shape = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(make_llama(), shape)
    with torch.no_grad():
        adapted.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.1)
    folder = saved(adapted, "whole", save_embedding_layers=False)
    torch.testing.assert_close(logits(load(base, folder)), logits(adapted))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_use_of_a_tied_weight_is_not_merged_into_both(make_llama, saved, target):
    shape = LoraConfig(r=2, target_modules=[target, "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(make_llama(tie_word_embeddings=True), shape)
    folder = saved(adapted, "adapter", save_embedding_layers=False)
    tied, apart = make_llama(tie_word_embeddings=True), make_llama(tie_word_embeddings=True)
    with pytest.raises(ModelError, match="cannot be merged into a weight that has two uses") as caught:
        load(saved(tied, "tied"), folder)
    assert target in caught.value.fix and caught.value.where
    # What the fix says is a base on which it can be.
    apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach().clone())
    apart.config.tie_word_embeddings = False
    torch.testing.assert_close(logits(load(saved(apart, "apart"), folder)), logits(adapted.eval()))
