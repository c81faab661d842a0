import copy

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.testing import CompileCounter
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AttentionInterface,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.errors import ConfigError, ModelError
from engine.models import layers
from engine.models.attention import PACKED
from engine.models.forward import PLAIN, Forward, row_logps
from engine.models.fused_lora import fuse_lora
from engine.models.layers import check_compiler, compile_body, decoder_layers, switch_on_checkpointing
from engine.models.lora import Lora, add_lora, trainable_parameters

WAYS = [Forward("packed", "fused"), Forward("shared", "fused"), Forward("padded", "fused"), PLAIN]
CPU = torch.device("cpu")


def adapted(model, dropout=0.0):
    """A model with an adapter that does something, its layers fused where they can be."""
    made = add_lora(model, Lora(4, 8.0, dropout, "all-linear"), seed=0, base_name="base")
    with torch.no_grad():
        for value in trainable_parameters(made).values():
            value.add_(0.05 * torch.randn_like(value))
    fuse_lora(made)
    return made


def results(model, groups, way):
    """Summed logps, and the gradient as one vector."""
    torch.manual_seed(7)  # of the draws of dropout
    model.zero_grad()
    sums = row_logps(model, groups, way, pad_id=0).sums()
    (sums @ sums.new_tensor([1.0, -0.5] * len(groups))).backward()
    return sums.detach(), torch.cat([value.grad.flatten() for value in trainable_parameters(model).values()])


def saved_bytes(model, groups, way):
    """What one forward pass keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = row_logps(model, groups, way, pad_id=0).sums()
    held = {value.untyped_storage().data_ptr() for value in model.parameters()}
    del sums
    return sum(size for pointer, size in kept.items() if pointer not in held)


@pytest.fixture
def groups(make_pairs):
    return [pair.rows for pair in make_pairs(4)]


@pytest.fixture
def counter():
    """A backend that counts what it is given to compile, and runs it as it is."""
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_computed_again_give_the_same_logps_and_gradients(make_llama, groups, way, dropout):
    model = adapted(make_llama(), dropout).train()
    expected = results(model, groups, way)
    assert switch_on_checkpointing(model) == 2
    found = results(model, groups, way)
    assert all(mine.equal(theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_layers_computed_again_keep_less(make_llama, groups, way, training):
    model = adapted(make_llama(num_hidden_layers=6, vocab_size=50)).train(training)
    before = saved_bytes(model, groups, way)
    switch_on_checkpointing(model)
    assert saved_bytes(model, groups, way) < before / 2


def test_layers_are_not_computed_again_where_no_gradient_is_recorded(make_llama, groups, monkeypatch):
    model = adapted(make_llama())
    switch_on_checkpointing(model)
    monkeypatch.setattr(layers, "checkpoint", None)
    with torch.no_grad():
        row_logps(model, groups, WAYS[0], pad_id=0)


def test_switching_on_twice_is_switching_on_once(make_llama, groups):
    model = adapted(make_llama())
    switch_on_checkpointing(model)
    once = [layer.forward for layer in decoder_layers(model)]
    switch_on_checkpointing(model)
    assert [layer.forward for layer in decoder_layers(model)] == once


SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_compiled_model_whose_layers_are_computed_again_generates_as_before(name):
    torch.manual_seed(0)
    model, ids = OTHERS[name]().eval(), torch.tensor([[1, 5, 9]])
    arguments = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **arguments)
    switch_on_checkpointing(model)
    for layer in decoder_layers(model):
        layer.forward.fast = None  # a compiled layer would be compiled anew for every token of a cache
    assert model.generate(ids, **arguments).equal(expected)


@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_other_architectures_are_computed_again_too(name, groups):
    torch.manual_seed(0)
    model = adapted(OTHERS[name]().eval())
    expected = results(model, groups, WAYS[2])
    assert switch_on_checkpointing(model) == 2
    assert all(mine.equal(theirs) for mine, theirs in zip(results(model, groups, WAYS[2]), expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_other_architectures_are_compiled_too(name, groups, counter):
    torch.manual_seed(0)
    model = adapted(OTHERS[name]().eval())
    expected = results(model, groups, WAYS[2])
    assert compile_body(model, counter) == 2
    for mine, theirs in zip(results(model, groups, WAYS[2]), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert counter.frame_count


def test_every_layer_is_compiled_for_any_number_of_tokens_and_runs_compiled(make_llama, groups, monkeypatch):
    compiled, ran = [], []

    def compile(forward, **how):
        compiled.append(how)
        return lambda *given, **named: ran.append(named["spans"]) or forward(*given, **named)

    monkeypatch.setattr(torch, "compile", compile)
    model = adapted(make_llama())
    assert compile_body(model, backend="eager") == len(compiled) == 2
    assert all(how == {"dynamic": True, "backend": "eager"} for how in compiled)
    row_logps(model, groups, WAYS[0], pad_id=0)
    assert len(ran) == 2
    assert AttentionInterface()[PACKED]._torchdynamo_disable


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("again", [False, True])
def test_compiled_layers_give_the_same_and_are_compiled_once_for_all_shapes(
    make_llama, make_pairs, way, again, counter
):
    model = adapted(make_llama(num_hidden_layers=3))
    batches = [[pair.rows for pair in make_pairs(count, seed)] for seed, count in enumerate((3, 2, 5, 4))]
    expected = [results(model, batch, way) for batch in batches]
    compile_body(model, counter)
    if again:
        switch_on_checkpointing(model)
    found, compiled = [], []
    for batch in batches:
        found.append(results(model, batch, way))
        compiled.append(counter.frame_count)
    assert compiled[0] == compiled[-1] > 0
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_layers_can_be_compiled_after_they_were_told_to_be_computed_again(make_llama, groups, counter):
    model = adapted(make_llama())
    switch_on_checkpointing(model)
    compile_body(model, counter)
    assert saved_bytes(model, groups, WAYS[0]) < saved_bytes(adapted(make_llama()), groups, WAYS[0])
    assert counter.frame_count


def test_parameters_keep_their_names(make_llama):
    model = adapted(make_llama())
    names = list(model.state_dict())
    compile_body(model, backend="eager")
    switch_on_checkpointing(model)
    assert list(model.state_dict()) == names


def test_without_a_compiler_nothing_is_compiled_and_the_error_says_what_to_install(make_llama, tmp_path):
    model = make_llama()
    before = [layer.forward for layer in decoder_layers(model)]
    with (
        torch._inductor.config.patch("cpp.cxx", (None, str(tmp_path / "g++"))),
        pytest.raises(ConfigError, match=r"torch\.compile cannot compile for cpu here") as caught,
    ):
        compile_body(model)
    assert "No working C++ compiler" in caught.value.found
    assert "g++" in caught.value.fix and "runtime.compile = false" in caught.value.fix
    assert [layer.forward for layer in decoder_layers(model)] == before


def test_without_triton_a_gpu_is_told_to_install_it(monkeypatch):
    monkeypatch.setattr(layers, "has_triton_package", lambda: False)
    with pytest.raises(ConfigError, match="cannot compile for cuda") as caught:
        check_compiler(torch.device("cuda"))
    assert "pip install triton" in caught.value.fix


def test_layers_that_are_not_found_are_an_error(make_llama):
    model = make_llama()
    model.model.layers = torch.nn.ModuleList(copy.copy(list(model.model.layers)) * 2)
    with pytest.raises(ModelError, match="decoder layers are not found") as caught:
        switch_on_checkpointing(model)
    assert caught.value.expected == "a list of 2 modules"


@pytest.mark.slow
def test_the_real_compiler_agrees_to_rounding(make_llama, groups):
    try:
        check_compiler(CPU)
    except ConfigError as error:
        pytest.skip(error.found)
    model = adapted(make_llama())
    expected = results(model, groups, WAYS[0])
    compile_body(model)
    for mine, theirs in zip(results(model, groups, WAYS[0]), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
