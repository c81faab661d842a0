import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.llama import modeling_llama

from engine.errors import DataError, ModelError, TransientError
from engine.models import loading
from engine.models.loading import (
    Place,
    check_rows,
    check_same_tokenizer,
    check_vocabulary,
    explained,
    load_model,
    load_tokenizer,
    new_model,
)
from engine.models.lora import Lora, add_lora

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "max_positions": 32,
    "pad_id": 0, "bos_id": 1, "eos_id": 2,
}  # fmt: skip

# What a Hub repository with a model of its own class holds; importing it leaves a mark.
OWN_CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def place(path, **arguments):
    return Place(str(path), **arguments)


def changed_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def own_code(make_llama, saved):
    """A model folder that ships its own class."""
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    folder = changed_config(saved(make_llama()), auto_map=auto_map, model_type="own", architectures=["OwnModel"])
    (folder / "own.py").write_text(OWN_CODE)
    return folder


def test_a_model_comes_back_as_it_was_saved_in_eval_mode_and_in_the_dtype_asked_for(make_llama, saved):
    made = make_llama()
    folder = saved(made)
    loaded = load_model(place(folder), dtype="float32")
    assert all(value.equal(loaded.state_dict()[name]) for name, value in made.state_dict().items())
    assert not loaded.training
    for half in (torch.bfloat16, torch.float16):
        assert load_model(place(folder), dtype=str(half).removeprefix("torch.")).dtype == half


def test_the_attention_implementation_is_the_one_asked_for(make_llama, saved):
    loaded = load_model(place(saved(make_llama())), dtype="float32", attention="eager")
    assert loaded.config._attn_implementation == "eager"


@pytest.mark.parametrize("said", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_the_attention_asked_for_runs_whatever_the_config_says(make_llama, saved, key, said, monkeypatch):
    called = []
    real = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *given, **named: called.append(1) or real(*given, **named)
    )
    folder = changed_config(saved(make_llama()), **{key: said})
    for asked in ("sdpa", "eager"):
        model = load_model(place(folder), dtype="float32", attention=asked)
        model(torch.tensor([[1, 5, 2]]))
        assert model.config._attn_implementation == asked
        assert bool(called) == (asked == "eager")


def test_experts_are_computed_as_transformers_chooses_whatever_the_config_says(saved):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 2}
    config = MixtralConfig(vocab_size=50, num_attention_heads=2, num_key_value_heads=2, **small)
    folder = saved(MixtralForCausalLM(config))
    own = load_model(place(folder), dtype="float32").config._experts_implementation
    for key in ("experts_implementation", "_experts_implementation"):
        for said in ("eager", "batched_mm"):
            loaded = load_model(place(changed_config(folder, **{key: said})), dtype="float32")
            assert loaded.config._experts_implementation == own


def test_a_model_that_chooses_its_attention_itself_is_refused(own_code):
    stubborn = "    def __init__(self, config):\n        super().__init__(config)\n"
    stubborn += "        config._attn_implementation = 'eager'\n"
    (own_code / "own.py").write_text(OWN_CODE + "\n" + stubborn)
    with pytest.raises(ModelError, match="another attention than the one asked for") as caught:
        load_model(place(own_code, allow_code=True), dtype="float32")
    assert (caught.value.expected, caught.value.found) == ("sdpa", "eager")
    load_model(place(own_code, allow_code=True), dtype="float32", attention="eager")


def test_a_tied_head_is_not_a_missing_weight(make_llama, saved):
    loaded = load_model(place(saved(make_llama(tie_word_embeddings=True))), dtype="float32")
    assert loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "no-such-thing", "a/b/c"])
def test_a_path_that_is_not_there_is_an_error_that_names_it(name):
    for load in (lambda: load_model(place(name), dtype="float32"), lambda: load_tokenizer(name)):
        with pytest.raises(ModelError) as caught:
            load()
        assert name in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="this folder holds no model"):
        load_model(place(tmp_path), dtype="float32")


def test_a_folder_without_weights_is_refused(make_llama, saved):
    folder = saved(make_llama())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(place(folder), dtype="float32")


def test_weights_as_a_pickle_are_never_read(make_llama, saved):
    made = make_llama()
    folder = saved(made)
    (folder / "model.safetensors").unlink()
    torch.save(made.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights must be safetensors"):
        load_model(place(folder), dtype="float32")


def test_weights_cut_in_the_middle_are_refused(make_llama, saved):
    folder = saved(make_llama())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(place(folder), dtype="float32")


def test_a_weight_that_is_missing_is_an_error_and_not_a_random_number(make_llama, saved):
    folder = saved(make_llama())
    weights = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack some of its weights") as caught:
        load_model(place(folder), dtype="float32")
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.found


def test_weights_of_another_shape_than_the_config_says_are_refused(make_llama, saved):
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(place(changed_config(saved(make_llama()), intermediate_size=48)), dtype="float32")


def test_code_that_a_model_ships_does_not_run_unless_it_is_allowed(own_code):
    with pytest.raises(ModelError, match="ships its own Python code, and it may not run") as caught:
        load_model(place(own_code), dtype="float32")
    assert f'model.allow_code = "{own_code}"' in caught.value.fix
    assert not (own_code / "ran").exists()


def test_code_that_is_allowed_runs(own_code):
    assert type(load_model(place(own_code, allow_code=True), dtype="float32")).__name__ == "OwnModel"


def test_a_tokenizer_comes_back_as_it_was_saved(make_tokenizer, saved):
    made = make_tokenizer()
    assert load_tokenizer(str(saved(made))).get_vocab() == made.get_vocab()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_tokenizer_whose_config_has_the_class_of_another_repository_is_refused(make_tokenizer, saved, allowed):
    folder = saved(make_tokenizer())
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "other/name--own.Config"}}))
    with pytest.raises(ModelError, match="another repository than its own"):
        load_tokenizer(str(folder), allow_code=allowed)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_new_model_is_seeded_and_ties_its_embeddings():
    one, same, other = (new_model(**SMALL, seed=seed) for seed in (1, 1, 2))
    weight = one.get_input_embeddings().weight
    assert weight.equal(same.get_input_embeddings().weight)
    assert not weight.equal(other.get_input_embeddings().weight)
    assert one.lm_head.weight.data_ptr() == weight.data_ptr()
    assert (one.dtype, one.training) == (torch.float32, False)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(make_llama, make_tokenizer):
    check_vocabulary(make_llama(), make_tokenizer(50), "here")
    check_vocabulary(make_llama(vocab_size=64), make_tokenizer(50), "here")  # padded to a round number, as many are
    with pytest.raises(ModelError, match="more tokens than the model has embeddings") as caught:
        check_vocabulary(make_llama(), make_tokenizer(51), "here")
    assert caught.value.where == "here"


@pytest.mark.parametrize("wrong", [50, 2**31 - 1, -1])
def test_an_id_without_an_embedding_is_refused_wherever_it_stands(make_llama, make_pairs, wrong):
    pairs = make_pairs(4)
    check_rows((pair.rows for pair in pairs), make_llama(), "here")
    pairs[2].rejected.input_ids[-1] = wrong
    with pytest.raises(DataError, match="an id that the model has no embedding for") as caught:
        check_rows((pair.rows for pair in pairs), make_llama(), "here")
    assert (caught.value.expected, caught.value.found) == ("ids from 0 to 49", f"id {wrong} in row 3")
    assert caught.value.where == "here"


def test_ids_of_rows_alone_and_under_an_adapter_are_checked_as_well(make_llama, make_row):
    adapted = add_lora(make_llama(), Lora(2, 4.0, 0.0, ["q_proj"]), seed=0, base_name="base")
    check_rows([[make_row([], [])], [make_row([0], [49])]], adapted, "here")
    with pytest.raises(DataError, match="no embedding"):
        check_rows([[make_row([1], [50])]], adapted, "here")


def test_a_policy_with_another_eos_is_refused(make_llama, make_tokenizer):
    with pytest.raises(ModelError, match="the policy's eos_token_id is not the tokenizer's") as caught:
        check_vocabulary(make_llama(eos_token_id=7), make_tokenizer(), "here")
    assert (caught.value.expected, caught.value.found) == ("2", "[7]")


def test_several_ids_that_end_a_generation_may_hold_the_tokenizers(make_llama, make_tokenizer):
    check_vocabulary(make_llama(eos_token_id=[7, 2]), make_tokenizer(), "here")


def test_a_policy_with_another_vocabulary_is_refused_by_the_first_token_that_differs(make_tokenizer, saved):
    folder = saved(make_tokenizer(first="other"))
    check_same_tokenizer(place(folder), make_tokenizer(first="other"))
    with pytest.raises(ModelError, match="vocabulary is not the one the pairs were tokenized with") as caught:
        check_same_tokenizer(place(folder), make_tokenizer())
    assert (caught.value.expected, caught.value.found) == ("'other' → None", "'other' → 3")


def test_a_policy_with_other_special_tokens_is_refused(make_tokenizer, saved):
    folder = saved(make_tokenizer(eos_token="w9"))
    with pytest.raises(ModelError, match="special tokens are not those") as caught:
        check_same_tokenizer(place(folder), make_tokenizer())
    assert (caught.value.expected, caught.value.found) == ("BOS 1, EOS 2", "BOS 1, EOS 9")


def test_a_policy_without_a_tokenizer_of_its_own_passes(make_llama, make_tokenizer, saved):
    check_same_tokenizer(place(saved(make_llama())), make_tokenizer())


def test_a_policy_on_the_hub_is_asked_for_its_tokenizer_at_its_commit(tmp_path, make_tokenizer, saved, monkeypatch):
    asked = []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "empty")  # an adapter's repository may hold none

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    check_same_tokenizer(Place("owner/adapter", "c" * 40), make_tokenizer())
    assert asked == [("owner/adapter", "c" * 40, ["tokenizer.json", "tokenizer_config.json"])]


def test_a_tokenizer_that_cannot_be_loaded_is_not_taken_for_one_that_is_not_there(make_tokenizer, saved):
    folder = saved(make_tokenizer())
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        check_same_tokenizer(place(folder), make_tokenizer())


class ConnectError(Exception):
    """Has the name of the error that the Hub's client raises."""


def test_trouble_with_the_network_may_be_tried_again_and_other_trouble_may_not():
    def unreachable():
        try:
            raise ConnectError("no route")
        except ConnectError as cause:
            raise OSError("cannot reach the Hub") from cause

    with pytest.raises(TransientError, match="the Hub did not answer for model `owner/name`"):
        explained(Place("owner/name"), "model", unreachable)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        explained(Place("owner/name"), "model", lambda: 1 / 0)


def test_the_revision_is_asked_for_on_the_hub_only(tmp_path):
    assert "revision" not in place(tmp_path).arguments()
    assert Place("owner/name", "abc").arguments()["revision"] == "abc"


def test_a_row_beyond_the_models_context_is_refused_before_it_is_looked_up(make_llama, make_row):
    model = make_llama(max_position_embeddings=8)
    check_rows([[make_row([1], range(3, 10))]], model, "here")
    with pytest.raises(DataError, match="longer than the model's context") as caught:
        check_rows([[make_row([1], [3])], [make_row([1], range(3, 11)), make_row([1], [3])]], model, "here")
    assert (caught.value.found, caught.value.fix) == ("9 tokens in row 2", "set tokenize.max_length = 8")
