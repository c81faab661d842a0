import logging

import pytest
import torch
from transformers import AttentionInterface

from engine.errors import ModelError, NumericsError
from engine.models import probe
from engine.models.attention import PACKED, packed_attention
from engine.models.forward import PLAIN, Forward
from engine.models.lora import trainable_parameters
from engine.models.probe import choose_forward


@pytest.fixture
def groups(make_pairs):
    """Rows of up to 36 tokens; the longest of them is not among the first."""
    pairs = sorted(make_pairs(8, longest=30), key=lambda pair: max(map(len, pair.rows)))
    return [pair.rows for pair in pairs]


@pytest.fixture
def chosen(groups, caplog):
    """What is chosen for a model, and what the log says of it."""
    caplog.set_level(logging.INFO, "dpo")

    def choose(model, rows=groups, **how):
        caplog.clear()
        return choose_forward(model, rows, pad_id=0, **how), caplog.text

    return choose


@pytest.fixture
def attention():
    """Puts another attention in place of that of packed rows, for one test."""
    yield lambda function: AttentionInterface.register(PACKED, function)
    AttentionInterface.register(PACKED, packed_attention)


@pytest.mark.parametrize(
    "name", ["llama", "llama, tied", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "granite", "cohere", "phi"]
)
@pytest.mark.parametrize("gradients", [True, False], ids=["trained", "scored"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_model_that_can_is_sent_packed_rows(make_model, adapt, chosen, name, gradients):
    way, log = chosen(adapt(make_model(name)), gradients=gradients)
    assert way == Forward("packed", "fused")
    assert "packed rows, fused head: agrees with the plain way on 3 groups of rows" in log
    assert "not taken" not in log


NO_PACKING = "packed rows, fused head: not taken, "


@pytest.mark.parametrize(
    "name, layout, reasons",
    [
        ("mistral, short window", "padded", ["its attention looks back 3 tokens only", "shared rows, fused head: not"]),
        ("gemma2", "shared", ["packing is a matter of sdpa, and the model runs eager"]),
        ("gptj", "shared", ["packing is a matter of sdpa, and the model runs eager"]),
    ],
)
def test_a_model_that_cannot_falls_back_and_the_log_says_why(make_model, adapt, chosen, name, layout, reasons):
    model = adapt(make_model(name))
    way, log = chosen(model)
    assert way == Forward(layout, "fused")
    assert NO_PACKING + reasons[0] in log
    assert all(reason in log for reason in reasons)
    assert model.config._attn_implementation == ("eager" if name in ("gemma2", "gptj") else "sdpa")


def test_a_window_that_only_the_longest_row_outgrows_is_found(make_model, adapt, chosen, groups):
    longest = max(max(map(len, group)) for group in groups)
    within, _ = chosen(adapt(make_model("mistral", sliding_window=longest)))
    # A row's last token predicts nothing: that it alone would see less does not count.
    just, _ = chosen(adapt(make_model("mistral", sliding_window=longest - 1)))
    beyond, _ = chosen(adapt(make_model("mistral", sliding_window=longest - 2)))
    assert (within.layout, just.layout, beyond.layout) == ("packed", "shared", "padded")


def test_a_head_under_an_adapter_is_called_as_a_module(make_model, adapt, chosen):
    way, log = chosen(adapt(make_model("llama"), ["q_proj", "lm_head"]))
    assert way == Forward("packed", "module")
    assert "the head is not a plain linear layer" in log


def shifted(module, query, key, value, mask, **given):
    out, weights = packed_attention(module, query, key, value, mask, **given)
    return out * 1.001, weights


class _WrongBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, above):
        return above * 1.001


def sloped(module, query, key, value, mask, **given):
    out, weights = packed_attention(module, query, key, value, mask, **given)
    return _WrongBackwards.apply(out), weights


def failing(module, query, key, value, mask, **given):
    raise RuntimeError("no kernel for this head size")


def drawing(module, query, key, value, mask, **given):
    torch.rand(1)
    return packed_attention(module, query, key, value, mask, **given)


def unending(module, query, key, value, mask, **given):
    out, weights = packed_attention(module, query, key, value, mask, **given)
    return out * torch.nan, weights


@pytest.mark.parametrize("broken", [shifted, sloped, failing, unending], ids=lambda function: function.__name__)
def test_a_broken_attention_is_caught_and_the_next_layout_taken(make_model, adapt, chosen, attention, broken):
    attention(
        lambda *given, spans=None, **named: (packed_attention if spans is None else broken)(
            *given, spans=spans, **named
        )
    )
    model = adapt(make_model("llama"))
    way, log = chosen(model)
    assert way == Forward("shared", "fused")
    assert model.config._attn_implementation == "sdpa"
    if broken is sloped:
        found = float(log.split("gradients by ")[1].split()[0])
        assert "logps are off by 0" in log and found > 10
    if broken is failing:
        assert "it fails with RuntimeError: no kernel for this head size" in log


@pytest.mark.parametrize("broken, layout", [(sloped, "packed"), (shifted, "shared"), (unending, "shared")])
def test_to_scoring_wrong_logps_matter_and_a_gradient_that_alone_is_wrong_does_not(
    make_model, adapt, chosen, attention, broken, layout
):
    attention(lambda *given, spans=None, **named: (broken if spans else packed_attention)(*given, spans=spans, **named))
    assert chosen(adapt(make_model("llama")), gradients=False)[0].layout == layout


def test_where_nothing_else_agrees_the_plain_way_is_left(make_model, adapt, chosen, monkeypatch):
    monkeypatch.setattr(probe, "takes_fused_head", lambda causal: True)
    way, log = chosen(adapt(make_model("llama"), ["q_proj", "lm_head"]))  # the head's adapter would be left out
    assert way == Forward("padded", "model")
    assert log.count("not taken, logps are off by") == 3


def test_a_model_whose_numbers_depend_on_its_neighbours_takes_a_row_at_a_time(make_model, adapt, chosen):
    by_the_longest = {
        "rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    }  # fmt: skip
    way, log = chosen(adapt(make_model("llama", rope_parameters=by_the_longest)))
    assert way == PLAIN
    assert log.count("not taken") == 4
    assert "the plain way, slow and right" in log


@pytest.mark.parametrize("wanted", ["shared", "padded", "packed"])
def test_a_layout_that_is_wanted_is_the_only_one_tried(make_model, adapt, chosen, wanted):
    way, log = chosen(adapt(make_model("llama")), wanted=wanted)
    assert way.layout == wanted
    assert log.count("rows, fused head") == 1


@pytest.mark.parametrize("wanted", ["packed", "shared"])
def test_a_wanted_layout_that_the_model_cannot_take_is_an_error(make_model, adapt, chosen, wanted):
    with pytest.raises(ModelError, match=f"this model cannot take {wanted} rows") as caught:
        chosen(adapt(make_model("mistral, short window")), wanted=wanted)
    assert "looks back 3 tokens" in caught.value.found or "logps are off" in caught.value.found
    assert 'runtime.layout = "auto"' in caught.value.fix


def test_logps_that_are_no_numbers_are_an_error_and_no_reason_to_fall_back(make_model, adapt, chosen, groups):
    model = adapt(make_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[int(groups[0][0].input_ids[0])] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        chosen(model)


@pytest.mark.parametrize("name", ["llama", "mistral, short window"])
def test_nothing_of_the_model_nor_of_the_random_streams_is_changed(make_model, adapt, chosen, attention, name):
    attention(drawing)
    model = adapt(make_model(name), dropout=0.5).train()
    model.get_base_model().get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    parameters = list(trainable_parameters(model).values())
    parameters[0].grad = torch.full_like(parameters[0], 7.0)
    values = [value.clone() for value in model.parameters()]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    chosen(model)
    assert torch.get_rng_state().equal(state)
    assert [module.training for module in model.modules()] == modes
    assert (parameters[0].grad == 7.0).all() and all(value.grad is None for value in parameters[1:])
    assert all(value.equal(before) for value, before in zip(model.parameters(), values, strict=True))


def test_dropout_does_not_speak_against_a_layout(make_model, adapt, chosen):
    assert chosen(adapt(make_model("llama"), dropout=0.5).train())[0].layout == "packed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_rounding_passes_and_an_error_does_not(make_model, adapt, chosen, attention, dtype):
    assert chosen(adapt(make_model("llama").to(dtype)))[0].layout == "packed"

    def forgetful(module, query, key, value, mask, **given):
        out, weights = packed_attention(module, query, key, value, mask, **given)
        return out.roll(1, 1), weights

    attention(forgetful)
    with pytest.raises(ModelError):
        chosen(adapt(make_model("llama").to(dtype)), wanted="packed", gradients=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_leak_that_would_pass_for_rounding_is_found(make_model, adapt, chosen, attention, dtype):
    def leaking(module, query, key, value, mask, spans=None, **given):
        out, weights = packed_attention(module, query, key, value, mask, spans=spans, **given)
        return out + 0.004 * out.mean(1, keepdim=True) if spans else out, weights

    attention(leaking)
    way, log = chosen(adapt(make_model("llama").to(dtype)))
    assert way.layout == "shared"
    assert "nats when the tokens of its neighbours change" in log


def test_memory_that_runs_out_is_no_reason_for_a_slower_layout(make_model, adapt, chosen, attention):
    def greedy(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    attention(greedy)
    with pytest.raises(torch.OutOfMemoryError):
        chosen(adapt(make_model("llama")))


def test_two_groups_are_enough_and_one_row_alone_as_well(make_model, adapt, chosen, groups):
    model = adapt(make_model("llama"))
    assert "on 2 groups" in chosen(model, groups[:2])[1]
    assert chosen(model, [groups[0][:1]])[0].layout == "packed"
