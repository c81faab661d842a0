import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from engine.models.anchored import AnchoredModel, difference_a, difference_b, lora_layers, save_trained
from engine.models.fused_lora import fuse_lora
from engine.models.lora import Lora, add_lora, trainable_parameters

IDS = torch.tensor([[1, 5, 9, 20, 33, 2], [7, 7, 3, 4, 0, 0]])
INITS = ["pissa", "pissa_niter_3", "olora", "orthogonal"]


def adapted(model, init="pissa", seed=0, **others):
    return add_lora(model, Lora(4, 8.0, 0.0, "all-linear", init=init, **others), seed=seed, base_name="policy")


def moved(model, by=0.02):
    """The model after a step of some kind."""
    torch.manual_seed(3)
    with torch.no_grad():
        for value in trainable_parameters(model).values():
            value.add_(by * torch.randn_like(value))
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def loss(model):
    return model(input_ids=IDS).logits.float().log_softmax(-1)[..., 5].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", INITS)
def test_however_it_starts_it_starts_as_no_change_to_the_bit(make_llama, init, dtype):
    before = logits(make_llama().to(dtype))
    model = adapted(make_llama().to(dtype), init)
    assert any(value.abs().max() > 0 for name, value in trainable_parameters(model).items() if "lora_B" in name)
    fuse_lora(model)
    assert logits(model).equal(before)


@pytest.mark.parametrize("init", INITS)
def test_no_weight_of_the_policy_is_changed(make_llama, init):
    kept = make_llama().state_dict()
    weights = adapted(make_llama(), init).get_base_model().state_dict()
    for name, value in kept.items():
        assert value.equal(weights.get(name, weights.get(name.replace(".weight", ".base_layer.weight"))))


def test_switched_off_it_is_the_policy_and_its_start_stays_frozen_afterwards(make_llama):
    before = logits(make_llama())
    model = moved(adapted(make_llama()))
    trained = set(trainable_parameters(model))
    assert trained and all(".default." in name for name in trained)
    assert not logits(model).allclose(before, atol=1e-3)
    with model.disable_adapter():
        assert logits(model).equal(before)
    assert set(trainable_parameters(model)) == trained
    assert not logits(model).allclose(before, atol=1e-3)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_its_outputs_and_gradients_are_those_of_peft_on_the_residual(make_llama, init):
    """peft takes the start out of the weights and adds it again as the adapter."""
    shape = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(make_llama(), LoraConfig(init_lora_weights=init, **shape))
    ours = adapted(make_llama(), init)
    fused = copy.deepcopy(ours)
    assert fuse_lora(fused) == 14
    for model in (theirs, ours, fused):
        moved(model)
        torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)
    slopes = [
        torch.autograd.grad(loss(each), list(trainable_parameters(each).values())) for each in (theirs, ours, fused)
    ]
    for mine in slopes[1:]:
        gap = torch.cat([(one - other).flatten() for one, other in zip(mine, slopes[0], strict=True)])
        assert float(gap.norm() / torch.cat([each.flatten() for each in slopes[0]]).norm()) < 1e-4


@torch.no_grad()
def test_small_steps_from_a_large_start_are_not_lost_in_half_precision(make_llama):
    outs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted(make_llama(), "pissa").to(dtype).float()  # what both start from can be said in bfloat16
        fuse_lora(model)
        layer = next(lora_layers(model))
        layer.base_layer.weight.data = torch.zeros_like(layer.base_layer.weight, dtype=dtype)
        layer.lora_B["start"].weight.copy_(-layer.lora_B["default"].weight)
        layer.lora_B["default"].weight.mul_(1 + 1e-4)  # less than bfloat16 tells apart
        outs.append(layer(torch.linspace(-1, 1, 16).reshape(1, -1).to(dtype)).float())
    assert float(outs[0].norm()) > 0
    assert float((outs[1] - outs[0]).norm() / outs[0].norm()) < 0.03


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_sealed_is_a_plain_lora_of_twice_the_rank_that_gives_the_same_model(make_llama, tmp_path, rslora):
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3.0}}
    model = moved(adapted(make_llama(), rslora=rslora, **patterns))
    save_trained(model, tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], config["bias"]) == (8, True, "none")
    assert (config["base_model_name_or_path"], config["rank_pattern"]) == ("policy", {"q_proj": 4})
    assert config["target_modules"] == sorted(config["target_modules"])
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    again = PeftModel.from_pretrained(make_llama(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    with again.disable_adapter():
        assert logits(again).equal(logits(make_llama()))


def test_it_runs_below_as_it_was_trained_to_the_bit(make_llama, tmp_path):
    model = moved(adapted(make_llama().bfloat16()))
    save_trained(model, tmp_path)
    again = PeftModel.from_pretrained(make_llama().bfloat16(), str(tmp_path / "adapter")).eval()
    assert fuse_lora(again) == fuse_lora(model.eval()) == 14
    assert logits(again).equal(logits(model))


def test_merged_it_is_the_same_model(make_llama):
    model = moved(adapted(make_llama()))
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


def test_one_that_starts_as_nothing_is_saved_by_peft_without_its_blank_card(make_llama, tmp_path):
    model = moved(adapted(make_llama(), "gaussian"))
    assert not isinstance(model, AnchoredModel)
    save_trained(model, tmp_path)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(trainable_parameters(model))


def test_the_difference_is_exact_where_nothing_moved_and_right_where_something_did():
    a, b, now_a, now_b = torch.randn(2, 5), torch.randn(3, 2), torch.randn(2, 5), torch.randn(3, 2)
    assert not (difference_b(b, -b) @ difference_a(a, a)).any()
    torch.testing.assert_close(difference_b(now_b, -b) @ difference_a(now_a, a), now_b @ now_a - b @ a)
