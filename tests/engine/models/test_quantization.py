import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from engine.errors import ConfigError, ModelError
from engine.models import merging, quantization
from engine.models.fused_lora import fuse_lora
from engine.models.loading import Place, load_model
from engine.models.lora import Lora, add_lora, trainable_parameters
from engine.models.merging import load_policy
from engine.models.quantization import bits_config, check_quantization, quantized


@pytest.fixture
def a_gpu(monkeypatch):
    """CUDA and bitsandbytes, as far as one asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("load", [load_model, lambda place, **how: load_policy(None, place, **how)])
def test_without_cuda_quantised_weights_are_refused_before_a_model_is_looked_for(no_gpu, bits, load):
    with pytest.raises(ConfigError, match=f"{bits} weights need a CUDA device") as caught:
        load(Place("/nowhere"), dtype="bfloat16", quantization=bits)
    assert 'reference.quantization = "none"' in caught.value.fix


def test_a_gpu_that_is_not_used_does_not_help(a_gpu):
    check_quantization("4bit", "float32", torch.device("cuda"))
    with pytest.raises(ConfigError, match="4bit weights need a CUDA device") as caught:
        check_quantization("4bit", "float32", torch.device("cpu"))
    assert caught.value.found == "runtime.device is cpu"


def test_without_the_package_the_error_is_the_command_that_installs_it(a_gpu, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need the package bitsandbytes") as caught:
        check_quantization("4bit", "bfloat16")
    assert caught.value.fix == "pip install bitsandbytes"


def test_8_bit_weights_are_not_promised_float32_products(a_gpu):
    for dtype in ("float16", "bfloat16"):
        check_quantization("8bit", dtype)
    with pytest.raises(ConfigError, match="never float32"):
        check_quantization("8bit", "float32")


def test_nothing_is_asked_of_weights_that_are_not_quantised(no_gpu, make_llama):
    check_quantization("none", "float32")
    assert bits_config("none", torch.float32) is None
    model = make_llama()
    assert quantized(model, "none") is model


def test_4_bits_multiply_in_the_dtype_asked_for_and_8_bits_are_8():
    four, eight = bits_config("4bit", torch.float16), bits_config("8bit", torch.float16)
    assert four.load_in_4bit and not four.load_in_8bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.float16)
    assert eight.load_in_8bit and not eight.load_in_4bit


def test_a_whole_model_is_quantised_from_its_own_weights_without_a_file(make_llama, monkeypatch):
    given = {}
    model = make_llama().bfloat16()

    def from_pretrained(name, **arguments):
        given.update(arguments, name=name)
        return model

    monkeypatch.setattr(type(model), "from_pretrained", from_pretrained)
    assert quantized(model, "4bit") is model
    assert given["name"] is None and given["dtype"] == torch.bfloat16 and given["quantization_config"].load_in_4bit
    assert all(value.equal(given["state_dict"][name]) for name, value in model.state_dict().items())


def test_an_adapter_is_not_merged_into_weights_that_are_stored_quantised(make_llama, saved, monkeypatch):
    base = saved(make_llama(), "base")
    adapter = add_lora(make_llama(), Lora(2, 4.0, 0.0, "all-linear"), seed=0, base_name=str(base))
    folder = saved(adapter, "adapter", save_embedding_layers=False)
    loaded = make_llama()
    loaded.quantization_method = "bitsandbytes"
    monkeypatch.setattr(merging, "load_model", lambda *given, **named: loaded)
    with pytest.raises(ModelError, match="cannot be merged into weights that are stored quantised") as caught:
        load_policy(Place(str(base)), Place(str(folder)), dtype="float32")
    assert caught.value.where == str(base)


def test_an_adapter_is_merged_before_anything_is_quantised(make_llama, saved, monkeypatch, a_gpu):
    base = saved(make_llama(), "base")
    adapter = add_lora(make_llama(), Lora(2, 4.0, 0.0, "all-linear"), seed=0, base_name=str(base))
    with torch.no_grad():
        for value in trainable_parameters(adapter).values():
            value.add_(0.05)
    folder = saved(adapter, "adapter", save_embedding_layers=False)
    seen = []
    monkeypatch.setattr(merging, "quantized", lambda model, bits: seen.append((model, bits)) or model)
    load_policy(Place(str(base)), Place(str(folder)), dtype="float32", quantization="4bit")
    ((merged, bits),) = seen
    assert bits == "4bit"
    plain = load_policy(Place(str(base)), Place(str(folder)), dtype="float32")
    assert all(value.equal(merged.state_dict()[name]) for name, value in plain.state_dict().items())


def test_the_package_is_not_imported_to_be_looked_for(a_gpu):
    check_quantization("4bit", "bfloat16")
    assert "bitsandbytes" not in sys.modules


def test_on_weights_that_are_quantised_an_adapter_is_float32_and_is_fused_nowhere_but_on_plain_ones(make_llama):
    model = make_llama().bfloat16()
    model.quantization_method = "bitsandbytes"
    for module in [module for module in model.modules() if type(module) is torch.nn.Linear]:
        module.__class__ = type("Linear4bit", (torch.nn.Linear,), {})
    adapted = add_lora(model, Lora(2, 4.0, 0.0, "all-linear"), seed=0, base_name="base")
    assert {value.dtype for value in trainable_parameters(adapted).values()} == {torch.float32}
    assert fuse_lora(adapted) == 0
