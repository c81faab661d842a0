import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engine.errors import ModelError
from engine.models.lora import Lora, add_lora, trainable_parameters

IDS = torch.tensor([[1, 5, 9, 20, 33, 2]])


def lora(targets="all-linear", dropout=0.0):
    return Lora(rank=4, alpha=8.0, dropout=dropout, targets=targets)


def adapted(model, shape=None, seed=0):
    return add_lora(model, shape or lora(), seed=seed, base_name="owner/base")


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def test_a_fresh_adapter_changes_no_bit(make_llama):
    model = make_llama()
    before = logits(model)
    assert logits(adapted(model)).equal(before)


def test_switching_a_trained_adapter_off_gives_the_policy_back(make_llama):
    before = logits(make_llama())
    model = adapted(make_llama())
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(0.1)
    assert not logits(model).allclose(before)
    with model.disable_adapter():
        assert logits(model).equal(before)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_only_the_adapter_is_trained_and_in_float32_on_a_half_precision_policy(make_llama, half):
    model = adapted(make_llama().to(half))
    trained = trainable_parameters(model)
    assert trained and all("lora_" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert {value.dtype for name, value in model.named_parameters() if name not in trained} == {half}


def test_all_linear_is_every_linear_layer_but_the_head(make_llama):
    places = {name.split(".lora_")[0].rpartition(".")[2] for name in trainable_parameters(adapted(make_llama()))}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_same_seed_gives_the_same_adapter(make_llama):
    one, same, other = (trainable_parameters(adapted(make_llama(), seed=seed)) for seed in (3, 3, 4))
    assert all(one[name].equal(same[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


def test_the_policys_own_dropout_is_switched_off_and_the_adapters_kept(make_llama):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))  # 0.1 everywhere
    for policy in (make_llama(attention_dropout=0.5), gpt2):
        expected = logits(policy.eval())
        model = adapted(policy, lora(dropout=0.3)).train()
        assert logits(model).allclose(expected, atol=1e-5)
        shares = {module.p for name, module in model.named_modules() if "lora_dropout." in name}
        assert shares == {0.3}


@pytest.mark.parametrize("targets", [["nonsense"], ["q_proj", "nonsense"], [], "nonsense", "(", ["mlp"]])
def test_targets_that_are_not_there_are_named_beside_those_that_are(make_llama, targets):
    with pytest.raises(ModelError, match="do not name modules of this model") as caught:
        adapted(make_llama(), lora(targets))
    assert "q_proj" in caught.value.expected
    assert str(targets) in caught.value.found


def test_a_saved_adapter_names_its_base_and_is_the_same_file_in_every_process(make_llama, tmp_path):
    adapted(make_llama()).save_pretrained(tmp_path, save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"
    assert config["bias"] == "none"
    # peft keeps a set of strings, which every process would write in another order.
    assert config["target_modules"] == sorted(config["target_modules"])
