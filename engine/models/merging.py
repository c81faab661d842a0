"""A starting policy that is given: a whole model, or a LoRA adapter, merged into its base or trained further on it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models.adapter_config import (
    CONFIG,
    WEIGHTS,
    adapter_settings,
    check_continuable,
    check_mergeable,
    check_shape,
)
from engine.models.adapter_values import check_ranks
from engine.models.anchored import AnchoredModel, lora_layers
from engine.models.contents import config_of
from engine.models.loading import Place, explained, fetched, first_line, load_model
from engine.models.lora import check_untied, switch_off_dropout
from engine.models.quantization import check_quantization, quantized

_WHOLE = ("embed_tokens.weight", "lm_head.weight")  # how weights end that have a row for every token


def load_policy(
    base: Place | None, policy: Place, *, dtype: str, attention: str = "sdpa", quantization: str = "none"
) -> PreTrainedModel:
    """A starting policy as one whole model in eval mode, where `load_model` leaves it.

    An adapter is merged, so that "adapter off" of a fresh one is this policy, and never its base. It is merged in
    `dtype` first and quantised then: merged into quantised weights, what it learnt would be rounded away.

    Raises:
        ConfigError: weights cannot be quantised here.
        ModelError: as `load_model`; an adapter that is no LoRA, has no base or another one, trained biases, has rows
            for other tokens than its base, sits on a weight that has two uses, or whose weights are not safetensors; or
            its base is stored in quantised weights.
        TransientError: the Hub did not answer.
    """
    check_quantization(quantization, dtype)
    folder = fetched(policy, (CONFIG, WEIGHTS))
    if adapter_settings(folder, policy.name) is None:
        return load_model(policy, dtype=dtype, attention=attention, quantization=quantization)
    whole = _load_base(base, policy, folder, dtype, attention)
    return quantized(_merged(whole, folder, f"{policy.name} on {base.name if base else ''}"), quantization)


def continue_adapter(
    policy: PreTrainedModel, adapter: Place, *, stated: Mapping[str, Any], base: str, policy_name: str
) -> AnchoredModel:
    """An SFT adapter that goes on being trained, in float32, on the policy that it was merged into.

    Whatever dropout it was made with, it has none from here on: it is to begin as the policy.

    Args:
        policy: what `load_policy` made of the adapter and its base, or the sft stage.
        stated: what a profile says of the adapter's shape; see `check_shape`.
        base, policy_name: what the configs of the adapter and of what it learns from now on name as the model to load.

    Raises:
        ConfigError: the adapter's shape is not what is stated.
        ModelError: there is no adapter, it does more than add to linear layers, or it does not fit the policy.
        TransientError: the Hub did not answer.
    """
    folder = fetched(adapter, (CONFIG, WEIGHTS))
    settings = adapter_settings(folder, adapter.name)
    if settings is None:
        raise ModelError(
            "there is no adapter to train further",
            expected=CONFIG,
            where=adapter.name,
            fix='set train.lora.start = "fresh": a new adapter on this policy',
        )
    check_continuable(settings, adapter.name)
    check_shape(settings, stated, adapter.name)
    switch_off_dropout(policy)
    adapted = _adapted(policy, folder, adapter.name)
    own = adapted.own_config
    own.base_model_name_or_path = policy_name
    own.target_modules = sorted(own.target_modules) if isinstance(own.target_modules, set) else own.target_modules
    adapted.anchor()
    adapted.below = base
    return adapted


def _load_base(base: Place | None, policy: Place, folder: Path, dtype: str, attention: str) -> PreTrainedModel:
    """The base of an adapter, once all is checked that can be told before weights are loaded."""
    settings = adapter_settings(folder, policy.name) or {}
    check_mergeable(settings, folder, base.name if base else "", policy.name)
    assert base is not None
    check_ranks(settings, _shapes(folder, policy.name), policy.name)
    _check_vocabulary(folder, base, policy)
    whole = load_model(base, dtype=dtype, attention=attention)
    if getattr(whole, "quantization_method", None) is not None:
        raise ModelError(
            "an adapter cannot be merged into weights that are stored quantised",
            where=base.name,
            fix="name the base in full precision as model.name; reference.quantization quantises what is merged",
        )
    return whole


def _check_vocabulary(folder: Path, base: Place, policy: Place) -> None:
    """Refuses an adapter that was trained on a base with rows for more tokens, or fewer."""
    settings = explained(base, "model", lambda: config_of(base))
    text = settings.get("text_config")
    rows = settings.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    for name, shape in _shapes(folder, policy.name).items():
        tokens = shape[0] if name.endswith(_WHOLE) else shape[1] if name.endswith("lora_embedding_A") else None
        if tokens is not None and rows is not None and tokens != rows:
            raise ModelError(
                "the adapter's vocabulary is not its base's",
                expected=f"{rows} tokens, as {base.name} has",
                found=f"{tokens} tokens in {name}",
                where=policy.name,
                fix="resize the base's embeddings as the SFT did, save it with the SFT's tokenizer, and name that as "
                "model.name; or merge the adapter there and give the whole model as model.policy",
            )


def _shapes(folder: Path, where: str) -> dict[str, list[int]]:
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:  # the format's own error is no subclass of anything
        raise _unfit(f"{type(error).__name__}: {first_line(error)}", where) from None


def _unfit(found: str, where: str, expected: str = "") -> ModelError:
    return ModelError(
        "the adapter does not fit its base",
        expected=expected,
        found=found,
        where=where,
        fix=f"name the base it was trained on as model.name; if it is that one, {CONFIG} is not as peft wrote it",
    )


def _merged(model: PreTrainedModel, folder: Path, where: str) -> PreTrainedModel:
    saved = _shapes(folder, where)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    except Exception as error:  # peft raises whatever the mismatch happens to break
        raise _unfit(f"{type(error).__name__}: {first_line(error)}", where) from None
    _check_places(adapted, saved, where)
    check_untied(adapted, where)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.eval()


def _adapted(model: PreTrainedModel, folder: Path, where: str) -> AnchoredModel:
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode, config.lora_dropout, config.init_lora_weights = False, 0.0, True
        adapted = AnchoredModel(model, config)
        set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    except Exception as error:  # as above
        raise _unfit(f"{type(error).__name__}: {first_line(error)}", where) from None
    _check_places(adapted, _shapes(folder, where), where)
    odd = next((layer for layer in lora_layers(adapted) if layer.lora_embedding_A), None)
    if odd is not None:
        raise ModelError(
            "this adapter cannot go on being trained as it is",
            expected="a plain LoRA on the base's linear layers",
            found=f"one on a layer of {type(odd.get_base_layer()).__name__}",
            where=where,
            fix='set train.lora.start = "fresh": the adapter is merged, and a new one is trained on that',
        )
    return adapted


def _check_places(model: PeftModel, saved: Iterable[str], where: str) -> None:
    """peft only warns of weights without a place and places without weights, and leaves those layers as they were."""
    wanted = {name for name in get_peft_model_state_dict(model, save_embedding_layers=False) if "lora_" in name}
    found = {name for name in saved if "lora_" in name}
    if found != wanted:
        raise _unfit(
            f"{len(found)} weights, {len(found & wanted)} of which have a place",
            where,
            expected=f"weights for {len(wanted)} places in the base",
        )
