import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engine.models.fused_lora import fuse_lora
from engine.models.lora import trainable_parameters

IDS = torch.tensor([[1, 5, 9, 20, 33, 2], [7, 7, 3, 4, 0, 0]])


@pytest.fixture
def both(make_model, adapt):
    """An adapted model of the zoo as peft runs it, and a copy with fused layers; and how many those are."""

    def make(name="llama", dtype=torch.float32, **adapter):
        plain = adapt(make_model(name).to(dtype), **adapter)
        fused = copy.deepcopy(plain)
        return plain, fused, fuse_lora(fused)

    return make


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def gradients(model):
    out = model(input_ids=IDS).logits.float()
    slopes = torch.autograd.grad(out.log_softmax(-1)[..., 5].sum(), list(trainable_parameters(model).values()))
    return torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize(
    "name, layers", [("llama", 14), ("qwen2", 14), ("phi", 12)], ids=["plain", "biases", "all biases"]
)
def test_outputs_and_gradients_are_those_of_peft(both, name, layers):
    plain, fused, count = both(name)
    assert count == layers
    torch.testing.assert_close(logits(fused), logits(plain), rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(fused), gradients(plain)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_on_a_bfloat16_base_they_are_pefts_to_rounding_and_the_adapter_stays_float32(both):
    plain, fused, _ = both(dtype=torch.bfloat16)
    assert float((logits(fused).float() - logits(plain).float()).norm() / logits(plain).float().norm()) < 0.02
    ours, theirs = gradients(fused), gradients(plain)
    assert ours.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_the_gradient_goes_on_through_the_layer_to_what_is_below(both):
    plain, fused, _ = both()
    slopes = []
    for model in (plain, fused):
        embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
        out = model(inputs_embeds=embedded).logits
        slopes.append(torch.autograd.grad(out.log_softmax(-1)[..., 5].sum(), embedded)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-5)


def test_no_more_is_kept_for_the_backward_pass_than_the_input_and_its_image(both):
    _, fused, _ = both()
    layer = next(module for module in fused.modules() if "forward" in vars(module))
    kept, width = [], layer.in_features
    x = torch.randn(3, 5, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        layer(x)
    weights = {value.data_ptr() for value in layer.parameters()}
    assert sum(each.numel() for each in kept if each.data_ptr() not in weights) == 15 * (width + 4)


def test_an_adapter_that_is_switched_off_is_off(both):
    plain, fused, _ = both()
    with plain.disable_adapter(), fused.disable_adapter():
        assert logits(fused).equal(logits(plain))
        off = logits(fused)
    assert not logits(fused).allclose(off)


def test_merged_and_unloaded_it_is_the_same_model(both):
    plain, fused, _ = both()
    expected = logits(plain)
    fused.merge_adapter()
    torch.testing.assert_close(logits(fused), expected, rtol=1e-4, atol=1e-4)
    fused.unmerge_adapter()
    torch.testing.assert_close(logits(fused), expected, rtol=1e-4, atol=1e-4)
    merged = fused.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) for module in merged.modules())


def test_it_generates_as_before(both):
    plain, fused, _ = both()
    said = [
        model.generate(input_ids=IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=0) for model in (plain, fused)
    ]
    assert said[0].equal(said[1])


def test_a_second_adapter_beside_it_is_left_to_peft(both):
    plain, fused, _ = both()
    for model in (plain, fused):
        torch.manual_seed(0)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    assert logits(fused).equal(logits(plain))


@pytest.mark.parametrize(
    "change",
    [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}],
    ids=["dropout", "dora", "biases that train", "an embedding"],
)
def test_layers_that_are_not_the_plain_case_are_left_to_peft(make_model, change):
    shape = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | change
    model = get_peft_model(make_model("llama"), LoraConfig(**shape))
    assert fuse_lora(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_convolution_in_place_of_a_linear_layer_is_left_to_peft(both):
    plain, fused, count = both("gpt2")
    assert count == 0
    assert logits(fused).equal(logits(plain))
