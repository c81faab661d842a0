import pytest

from engine.errors import ModelError
from engine.models.loading import Place
from engine.models.lora import Lora, add_lora
from engine.policies import (
    given_policy,
    made_policy,
    open_policy,
    open_tokenizer,
    place_of,
    policy_content,
    policy_name,
)
from engine.preferences.tokenizing import train_bpe
from engine.sources import ModelSource, Sources
from engine.store import Artifact

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
