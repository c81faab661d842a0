"""A starting policy that is given: a whole model, or a LoRA adapter merged into the base it was trained on."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models.loading import Place, explained, fetched, first_line, load_model
from engine.models.quantization import check_quantization, quantized

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_policy(
    base: Place | None, policy: Place, *, dtype: str, attention: str = "sdpa", quantization: str = "none"
) -> PreTrainedModel:
    """A starting policy as one whole model in eval mode, where `load_model` leaves it.

    An adapter is merged, so that "adapter off" of a fresh one is this policy, and never its base. It is merged in
    `dtype` first and quantised then: merged into quantised weights, what it learnt would be rounded away.

    Raises:
        ConfigError: weights cannot be quantised here.
        ModelError: as `load_model`; an adapter that is no LoRA, has no base or another one, trained biases, or whose
            weights are not safetensors; or its base is stored in quantised weights.
        TransientError: the Hub did not answer.
    """
    check_quantization(quantization, dtype)
    folder = _adapter_folder(policy)
    if folder is None:
        return load_model(policy, dtype=dtype, attention=attention, quantization=quantization)
    config = explained(policy, "adapter", lambda: PeftConfig.from_pretrained(str(folder)))
    _check_adapter(config, folder, base, policy)
    assert base is not None
    whole = load_model(base, dtype=dtype, attention=attention)
    if getattr(whole, "quantization_method", None) is not None:
        raise ModelError(
            "an adapter cannot be merged into weights that are stored quantised",
            where=base.name,
            fix="name the base in full precision as model.name; reference.quantization quantises what is merged",
        )
    return quantized(_merged(whole, folder, f"{policy.name} on {base.name}"), quantization)


def _adapter_folder(policy: Place) -> Path | None:
    """Where the adapter's files lie; None when the policy is a whole model."""
    folder = fetched(policy, (_CONFIG, _WEIGHTS))
    return folder if (folder / _CONFIG).is_file() else None


def _check_adapter(config: Any, folder: Path, base: Place | None, policy: Place) -> None:
    """Everything that can be told before weights are loaded."""
    made_on = str(config.base_model_name_or_path or "")
    name_it = f'set model.name = "{made_on}"'
    if config.peft_type != "LORA":
        raise ModelError(
            "this adapter cannot be merged", expected="a LoRA", found=str(config.peft_type), where=policy.name
        )
    if base is None or not base.name:
        raise ModelError(f"`{policy.name}` is a LoRA adapter and no base is named", fix=name_it)
    if made_on and not _is_same_base(made_on, base):
        raise ModelError(
            "the adapter was trained on another base, as far as its name tells",
            expected=made_on,
            found=base.name,
            where=policy.name,
            fix=f"{name_it}; if that base is this one under another name, correct base_model_name_or_path in {_CONFIG}",
        )
    if config.bias != "none":
        raise ModelError(
            "an adapter that trained biases cannot be merged and switched off again",
            expected='bias = "none"',
            found=f'bias = "{config.bias}"',
            where=policy.name,
        )
    if config.megatron_config:  # peft would import the module that the adapter names
        raise ModelError("an adapter of Megatron cannot be merged", found="megatron_config", where=policy.name)
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(
            "the adapter has no weights that may be read",
            expected=_WEIGHTS,
            where=policy.name,
            fix="save it anew as safetensors: other formats can run code when they are read",
        )


def _is_same_base(made_on: str, base: Place) -> bool:
    """Whether the name an adapter keeps of its base is the base's: a path or the end of it, or the Hub's name.

    A folder named like a Hub repository is taken for a copy of it; the last part of a path alone says nothing, since
    every policy made here ends in the same one.
    """
    if made_on == base.name:
        return True
    if base.folder is None:
        return False
    here, there = base.folder.resolve(), Path(made_on).expanduser()
    if there.is_dir():
        return there.resolve() == here
    if made_on.count("/") == 1 and not made_on.startswith((".", "~", "/")):
        return there.name == here.name
    return not there.is_absolute() and here.parts[-len(there.parts) :] == there.parts


def _merged(model: PreTrainedModel, folder: Path, where: str) -> PreTrainedModel:
    fix = "name the base the adapter was trained on as model.name"
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            saved = {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 - it is no mapping
        adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    except Exception as error:  # peft raises whatever the mismatch happens to break
        raise ModelError(
            "the adapter does not fit its base",
            found=f"{type(error).__name__}: {first_line(error)}",
            where=where,
            fix=fix,
        ) from None
    wanted = {name for name in get_peft_model_state_dict(adapted) if "lora_" in name}
    if saved != wanted:  # peft only warns, and leaves those layers as they were
        raise ModelError(
            "the adapter does not fit its base",
            expected=f"weights for {len(wanted)} places in the base",
            found=f"{len(saved)} weights, {len(saved & wanted)} of which have a place",
            where=where,
            fix=fix,
        )
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.eval()
