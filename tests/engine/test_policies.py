import json

import pytest
import torch

from engine.errors import ConfigError, ModelError
from engine.models.loading import Place
from engine.models.lora import Lora, add_lora
from engine.policies import (
    check_start as checked_start,
)
from engine.policies import (
    given_policy,
    made_policy,
    open_adapted,
    open_policy,
    open_tokenizer,
    place_of,
    policy_content,
    policy_name,
)
from engine.preferences.tokenizing import train_bpe
from engine.sources import ModelSource, Sources
from engine.store import Artifact
from engine.training_config import LoraConfig, StartedLoraConfig

COMMIT = "c" * 40


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path / "data", network=False)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["How do I bake a cake?"] * 3, 300)


@pytest.fixture
def tokenized(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenize" / "tokenizer")
    return Artifact("tokenize", "k", tmp_path / "tokenize")


@pytest.fixture
def model(tmp_path, make_llama, tokenizer):
    """A folder with a model and its tokenizer."""
    folder = tmp_path / "model"
    make_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(inputs, source, sources):
    return open_policy(inputs, source, sources, dtype="float32", attention="sdpa")


def test_the_policy_that_the_sft_stage_made_is_opened(tmp_path, make_llama, tokenizer, tokenized, sources):
    made = make_llama(vocab_size=len(tokenizer), seed=3)
    made.save_pretrained(tmp_path / "sft" / "policy")
    inputs = {"tokenize": tokenized, "sft": Artifact("sft", "k", tmp_path / "sft")}
    policy = opened(inputs, ModelSource(), sources)
    assert policy.lm_head.weight.equal(made.lm_head.weight)
    # Not where it lies now: the name is part of the adapter, which must be the same artifact in any place.
    assert policy_name(inputs, ModelSource()) == "artifacts/sft/k/policy"


def test_a_policy_that_was_made_and_one_that_is_given_are_the_same_where_their_content_is(
    tmp_path, make_llama, tokenizer, sources
):
    for place, seed in (("sft/policy", 3), ("elsewhere", 3), ("other", 4)):
        make_llama(vocab_size=len(tokenizer), seed=seed).save_pretrained(tmp_path / place)
    made = policy_content({"sft": Artifact("sft", "k", tmp_path / "sft")}, ModelSource(), sources)
    same, other = (
        policy_content({}, ModelSource(name=path, policy=path), sources)
        for path in (str(tmp_path / "elsewhere"), str(tmp_path / "other"))
    )
    assert made == same != other


def test_a_given_model_is_opened(tokenized, model, make_llama, tokenizer, sources):
    source = ModelSource(policy=str(model))
    policy = opened({"tokenize": tokenized}, source, sources)
    assert policy.lm_head.weight.equal(make_llama(vocab_size=len(tokenizer)).lm_head.weight)
    assert policy_name({"tokenize": tokenized}, source) == str(model)


def test_a_given_adapter_is_opened_merged_into_its_base(tmp_path, tokenized, model, make_llama, tokenizer, sources):
    lora = Lora(2, 4.0, 0.0, ["q_proj"])
    adapted = add_lora(make_llama(vocab_size=len(tokenizer)), lora, seed=0, base_name=str(model))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    policy = opened({"tokenize": tokenized}, ModelSource(name=str(model), policy=str(tmp_path / "adapter")), sources)
    merged = adapted.merge_and_unload().state_dict()
    assert all(value.allclose(merged[name]) for name, value in policy.state_dict().items())


def test_a_given_model_whose_embeddings_are_too_few_is_refused(tmp_path, tokenized, make_llama, sources):
    make_llama(vocab_size=100).save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        opened({"tokenize": tokenized}, ModelSource(policy=str(tmp_path / "small")), sources)


def test_a_given_model_with_another_tokenizer_is_refused(tmp_path, tokenized, model, sources):
    train_bpe(["Something else entirely: 12345"] * 3, 300).save_pretrained(model)
    with pytest.raises(ModelError, match="vocabulary is not the one"):
        opened({"tokenize": tokenized}, ModelSource(policy=str(model)), sources)


def test_the_tokenizer_is_the_tokenize_artifacts(tokenized, tokenizer):
    assert open_tokenizer(tokenized, ModelSource(name="owner/ignored")).get_vocab() == tokenizer.get_vocab()


def test_a_given_policy_is_identified_with_its_base_and_only_when_there_is_one(model, sources):
    hashes = sources.weights(str(model), "main")
    assert given_policy(ModelSource(name=str(model)), sources) == {}
    assert given_policy(ModelSource(policy=str(model)), sources) == {"policy": hashes}
    assert given_policy(ModelSource(name=str(model), policy=str(model)), sources) == {"policy": hashes}
    on_hub = ModelSource(name="owner/base", revision=COMMIT, policy=str(model))
    assert given_policy(on_hub, sources) == {"policy": hashes, "base": f"owner/base@{COMMIT}"}


def test_a_folder_is_taken_as_it_is_and_a_repository_at_its_commit(tmp_path, sources):
    assert place_of(str(tmp_path), "main", ModelSource(), sources) == Place(str(tmp_path))
    assert place_of("owner/name", COMMIT, ModelSource(), sources) == Place("owner/name", COMMIT)


def test_only_the_one_that_is_named_may_run_its_code(tmp_path, sources):
    source = ModelSource(name="owner/base", revision=COMMIT, policy="owner/policy", allow_code="owner/base")
    assert place_of("owner/base", COMMIT, source, sources).allow_code
    assert not place_of("owner/policy", COMMIT, source, sources).allow_code


def test_a_policy_that_was_made_here_brings_the_code_of_its_base(tmp_path):
    (tmp_path / "policy").mkdir()
    made = Artifact("sft", "k", tmp_path)
    assert made_policy(made, ModelSource(name="owner/base", revision=COMMIT, allow_code="owner/base")).allow_code
    assert not made_policy(made, ModelSource(name="owner/base")).allow_code
    assert not made_policy(made, ModelSource(name="owner/base", allow_code="owner/other")).allow_code


def test_a_path_where_nothing_is_has_no_place(sources):
    with pytest.raises(ModelError, match="there is no model at `nowhere/at/all`"):
        place_of("nowhere/at/all", "main", ModelSource(), sources)


IDS = torch.tensor([[1, 5, 9, 20]])
HOW = {"dtype": "float32", "attention": "sdpa"}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture
def adapter(tmp_path, model, make_llama, tokenizer):
    """A folder with an SFT adapter of the model that changes it."""
    adapted = add_lora(
        make_llama(vocab_size=len(tokenizer)), Lora(2, 4.0, 0.1, ["q_proj"]), seed=0, base_name=str(model)
    )
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter"


@pytest.mark.parametrize("start", ["fresh", "sft"])
def test_the_policy_is_opened_under_a_fresh_adapter_or_the_sfts_own_and_is_as_yet_the_policy(
    tokenized, model, adapter, sources, start
):
    source, inputs = ModelSource(name=str(model), policy=str(adapter)), {"tokenize": tokenized}
    policy = logits(opened(inputs, source, sources))
    adapted = open_adapted(inputs, source, sources, StartedLoraConfig(start=start), 0, **HOW)
    torch.testing.assert_close(logits(adapted.eval()), policy, rtol=1e-5, atol=1e-5)
    assert adapted.peft_config["default"].r == (16 if start == "fresh" else 2)
    assert adapted.peft_config["default"].base_model_name_or_path == str(adapter)
    assert adapted.peft_config["default"].lora_dropout == 0.0
    with adapted.disable_adapter():
        assert logits(adapted).equal(policy)


def test_the_adapter_that_the_sft_stage_made_goes_on_where_there_is_one(
    tmp_path, tokenized, model, adapter, make_llama, tokenizer, sources
):
    source = ModelSource(name=str(model))
    opened({"tokenize": tokenized}, ModelSource(name=str(model), policy=str(adapter)), sources).save_pretrained(
        tmp_path / "sft" / "policy"
    )
    inputs = {"tokenize": tokenized, "sft": Artifact("sft", "k", tmp_path / "sft")}
    with pytest.raises(ConfigError, match="goes on training the SFT's adapter") as caught:
        open_adapted(inputs, source, sources, StartedLoraConfig(start="sft"), 0, **HOW)
    assert 'sft.method = "lora"' in caught.value.fix
    adapter.rename(tmp_path / "sft" / "adapter")
    adapted = open_adapted(inputs, source, sources, StartedLoraConfig(start="sft"), 0, **HOW)
    assert (adapted.peft_config["default"].r, adapted.below) == (2, str(model))


SFT = LoraConfig(rank=2, alpha=4, targets=["q_proj"])


def begins(source, lora, sft_lora=SFT, quantization="none"):
    checked_start(source, lora, sft_lora=sft_lora, quantization=quantization)


def test_an_adapter_in_a_folder_is_looked_at_before_anything_runs(model, adapter, sources):
    source, further = ModelSource(name=str(model), policy=str(adapter)), StartedLoraConfig(start="sft")
    assert set(given_policy(source, sources)) == {"policy", "base"}
    begins(source, further)
    with pytest.raises(ConfigError, match=r"train\.lora\.rank is not that of the adapter"):
        begins(source, StartedLoraConfig(start="sft", rank=8))
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bias": "all", "use_dora": True}))
    with pytest.raises(ModelError, match="trained biases"):
        given_policy(source, sources)
    with pytest.raises(ModelError, match="cannot go on being trained as it is"):
        begins(source, further)


@pytest.mark.parametrize("source", [ModelSource(), ModelSource(policy="owner/adapter")])
def test_without_a_base_there_is_no_adapter_to_go_on_with(source):
    with pytest.raises(ConfigError, match="goes on training the SFT's adapter") as caught:
        begins(source, StartedLoraConfig(start="sft"))
    assert "model.name" in caught.value.fix
    begins(source, StartedLoraConfig())


def test_what_goes_on_and_what_is_found_in_weights_is_refused_where_another_stage_rules_it_out(model):
    source, further = ModelSource(name=str(model)), StartedLoraConfig(start="sft")
    begins(source, further)
    with pytest.raises(ConfigError) as caught:
        begins(source, further, sft_lora=None)
    assert 'sft.method = "lora"' in caught.value.fix
    with pytest.raises(ConfigError, match="quantised weights"):
        begins(source, StartedLoraConfig(init="pissa"), quantization="4bit")
    begins(source, StartedLoraConfig(), sft_lora=None, quantization="4bit")


@pytest.mark.parametrize(
    ("sft", "stated"),
    [
        ({"rank": 8, "alpha": 4}, {"rank": 8, "alpha": 4}),
        ({"init": "pissa", "rank": 2, "alpha": 4}, {"rank": 4, "alpha": 8}),
        ({"targets": "all-linear"}, {"targets": ["q_proj"]}),
        ({"targets": ["v_proj", "q_proj"]}, {"targets": ["q_proj", "v_proj"]}),
        ({"dropout": 0.1, "rslora": True}, {"rslora": True}),
    ],
)
def test_an_adapter_that_the_sft_stage_is_to_make_may_go_on_in_its_own_shape(model, sft, stated):
    begins(ModelSource(name=str(model)), StartedLoraConfig(start="sft", **stated), LoraConfig(**sft))


@pytest.mark.parametrize(
    ("sft", "stated", "problem"),
    [
        ({"dora": True}, {}, "cannot go on being trained as it is"),
        ({"rank": 8}, {"rank": 4}, r"train\.lora\.rank is not that of the adapter"),
        ({"init": "pissa", "rank": 4}, {"rank": 4}, r"train\.lora\.rank is not that of the adapter"),
        ({}, {"rslora": True}, r"train\.lora\.rslora is not that of the adapter"),
        ({"targets": ["q_proj"]}, {"targets": ["v_proj"]}, r"train\.lora\.targets is not that of the adapter"),
        ({}, {"alpha_pattern": {"q": 3.0}}, r"train\.lora\.alpha_pattern is not that of the adapter"),
    ],
)
def test_what_the_sft_stages_adapter_could_not_go_on_as_is_refused_before_it_is_made(model, sft, stated, problem):
    source, further = ModelSource(name=str(model)), StartedLoraConfig(start="sft", **stated)
    with pytest.raises((ConfigError, ModelError), match=problem) as caught:
        begins(source, further, LoraConfig(**sft))
    assert caught.value.where.startswith("sft.lora") and 'train.lora.start = "fresh"' in caught.value.fix
    begins(ModelSource(name=str(model), policy="owner/adapter"), further, LoraConfig(**sft))  # no SFT is made


def test_a_whole_model_has_no_adapter_to_go_on_with(model):
    with pytest.raises(ConfigError, match="goes on training the SFT's adapter") as caught:
        begins(ModelSource(name=str(model), policy=str(model)), StartedLoraConfig(start="sft"))
    assert "whole model" in caught.value.found


def test_a_start_from_the_weights_is_refused_on_quantised_ones_before_any_is_loaded(tokenized, sources):
    with pytest.raises(ConfigError, match="not to be had of quantised weights"):
        open_adapted({}, ModelSource(), sources, StartedLoraConfig(init="pissa"), 0, quantization="4bit", **HOW)
