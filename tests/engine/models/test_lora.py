import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engine.errors import ConfigError, ModelError
from engine.models.adapter_config import check_init
from engine.models.anchored import lora_layers
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dora_starts_as_no_change_to_the_bit_in_any_precision(make_llama, dtype):
    before = logits(make_llama().to(dtype))
    model = adapted(make_llama().to(dtype), Lora(4, 8.0, 0.0, "all-linear", dora=True))
    lengths = {name: value for name, value in trainable_parameters(model).items() if "magnitude" in name}
    assert len(lengths) == 14 and {value.dtype for value in lengths.values()} == {torch.float32}
    assert logits(model).equal(before)


def test_the_scale_is_over_the_root_of_the_rank_where_it_is_rank_stabilised(make_llama):
    scales = []
    for rslora in (False, True):
        model = adapted(make_llama(), Lora(4, 8.0, 0.0, ["q_proj"], rslora=rslora))
        scales.append(next(lora_layers(model)).scaling["default"])
    assert scales == [8 / 4, 8 / math.sqrt(4)]


def test_ranks_and_alphas_follow_the_names(make_llama):
    shape = Lora(4, 8.0, 0.0, "all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\..*": 1.0})
    ranks = {
        name.split(".lora_A")[0].rpartition(".")[2]: len(value)
        for name, value in trainable_parameters(adapted(make_llama(), shape)).items()
        if "lora_A" in name
    }
    assert ranks["q_proj"] == 2 and set(ranks.values()) == {2, 4}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_name_in_a_pattern_that_fits_nothing_is_told(make_llama, field):
    with pytest.raises(ModelError, match=rf"no adapted module fits a name in lora\.{field}") as caught:
        adapted(make_llama(), Lora(4, 8.0, 0.0, ["q_proj"], **{field: {"v_proj": 2}}))
    assert "v_proj" in caught.value.found and "q_proj" in caught.value.expected


def test_a_start_from_the_weights_needs_weights_that_are_not_quantised(make_llama):
    for init in ("pissa", "pissa_niter_4", "olora", "orthogonal"):
        with pytest.raises(ConfigError, match="not to be had of quantised weights") as caught:
            check_init(init, "4bit")
        assert 'train.lora.init = "default"' in caught.value.fix
        check_init(init, "none")
    check_init("gaussian", "4bit")
    stored = make_llama()
    stored.quantization_method = "bitsandbytes"
    with pytest.raises(ConfigError, match="not to be had of quantised weights"):
        adapted(stored, Lora(4, 8.0, 0.0, "all-linear", init="pissa"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_start_that_cannot_be_had_of_the_weights_is_told(make_llama):
    with pytest.raises(ModelError, match="cannot be had of every target") as caught:
        adapted(make_llama(), Lora(20, 8.0, 0.0, "all-linear", init="pissa"))  # of 16 columns
    assert "20 rows and columns" in caught.value.expected
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ModelError, match="cannot be had of every target") as caught:
        adapted(gpt2, Lora(4, 8.0, 0.0, ["c_attn"], init="olora"))
    assert "Conv1D" in caught.value.found


def test_a_saved_adapter_looks_for_no_start_when_it_is_loaded(make_llama):
    assert (
        adapted(make_llama(), Lora(4, 8.0, 0.0, ["q_proj"], init="gaussian")).peft_config["default"].init_lora_weights
        is True
    )


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"], ".*(lm_head|embed_tokens)"])
@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_a_head_that_is_the_embedding_gets_no_adapter_since_a_merge_would_change_both(make_llama, targets, init):
    tied = make_llama(tie_word_embeddings=True)
    with pytest.raises(ModelError, match="cannot be merged into a weight that has two uses") as caught:
        adapted(tied, Lora(4, 8.0, 0.0, targets, init=init))
    assert caught.value.where == "owner/base"
    assert "tie_word_embeddings = false" in caught.value.fix
    adapted(make_llama(tie_word_embeddings=True))
    adapted(make_llama(), Lora(4, 8.0, 0.0, targets, init=init))


def test_lengths_are_not_to_be_had_of_an_embedding(make_llama):
    with pytest.raises(ModelError, match=r"lora\.dora cannot be had of every target") as caught:
        adapted(make_llama(), Lora(4, 8.0, 0.0, ["embed_tokens", "q_proj"], dora=True))
    assert "Embedding" in caught.value.found and "lora.dora = false" in caught.value.fix
    adapted(make_llama(), Lora(4, 8.0, 0.0, ["lm_head", "q_proj"], dora=True))
