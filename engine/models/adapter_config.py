"""What an adapter says of itself in adapter_config.json, and what can be refused by it before any weight is read.

Nothing heavy is imported here: an adapter in a folder is looked at when a run is planned.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, ModelError
from engine.models.adapter_values import check_values, in_place_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # how initialisations are called that change the base
_MERGE_IT = 'set train.lora.start = "fresh": the adapter is merged, and a new one is trained on that'
# LoRA in name, but what they do to a token depends on more than one matrix that could be added.
_NOT_MERGED = (
    "megatron_config", "arrow_config", "alora_invocation_tokens", "kasa_config", "monteclora_config",
    "layer_replication",
)  # fmt: skip
NAMES = {  # of what a profile says of an adapter's shape, in peft's words
    "rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "rslora": "use_rslora",
    "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern",
}  # fmt: skip


def starts_apart(init: str) -> bool:
    """Whether what an adapter so initialised starts as is not nothing by itself, so that it has to be subtracted."""
    return init not in ("default", "gaussian")


def doubled(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A shape in peft's words at twice the rank and the same scale: α/r, or α/√r with rank-stabilised LoRA."""
    more = math.sqrt(2) if shape["use_rslora"] else 2
    return {
        **shape,
        "r": 2 * shape["r"],
        "lora_alpha": more * shape["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (shape["rank_pattern"] or {}).items()},
        "alpha_pattern": {name: more * alpha for name, alpha in (shape["alpha_pattern"] or {}).items()},
    }


def check_init(init: str, quantization: str) -> None:
    """Refuses an initialisation that is made for weights as they are where these are quantised. Raises ConfigError."""
    if starts_apart(init) and quantization != "none":
        raise ConfigError(
            f'lora.init = "{init}" is not to be had of quantised weights',
            expected='"default" or "gaussian"',
            found=quantization,
            fix='set train.lora.init = "default", or reference.quantization = "none"',
        )


def folder_of(name: str) -> Path | None:
    """The folder that a name of a model or an adapter is, None where it is none."""
    try:
        path = Path(name).expanduser()
        return path if name and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # no name that a file can have, or nobody's home
        return None


def adapter_settings(folder: Path, where: str) -> Mapping[str, Any] | None:
    """The content of adapter_config.json; None where there is none, and the folder is then no adapter's.

    Raises:
        ModelError: it is no JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(f"{type(error).__name__}: {error}", where) from None
    if not isinstance(settings, dict):
        raise _unreadable(type(settings).__name__, where)
    return settings


def _unreadable(found: str, where: str) -> ModelError:
    return ModelError("the adapter cannot be loaded", expected=f"a table in {CONFIG}", found=found, where=where)


def check_mergeable(settings: Mapping[str, Any], folder: Path, base: str, policy: str) -> None:
    """Refuses what cannot be merged into `base`, or of which it cannot be told that it belongs there.

    Args:
        folder: where the adapter's files lie.
        base, policy: the names that were given of the model and the adapter.

    Raises:
        ModelError: it is no LoRA, has no base or another one, trained biases, or its weights are not safetensors.
    """
    _check_kind(settings, policy)
    check_values(settings, policy)
    made_on = str(settings.get("base_model_name_or_path") or "")
    name_it = f'set model.name = "{made_on}"'
    if not base:
        raise ModelError(f"`{policy}` is a LoRA adapter and no base is named", fix=name_it)
    if made_on and not is_same_base(made_on, base):
        raise ModelError(
            "the adapter was trained on another base, as far as its name tells",
            expected=made_on,
            found=base,
            where=policy,
            fix=f"{name_it}; if that base is this one under another name, correct base_model_name_or_path in {CONFIG}",
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            "the adapter has no weights that may be read",
            expected=WEIGHTS,
            where=policy,
            fix="save it anew as safetensors: other formats can run code when they are read",
        )


def _check_kind(settings: Mapping[str, Any], policy: str) -> None:
    kind = str(settings.get("peft_type") or "nothing")
    merge = "merge it yourself where it was trained, and give the whole model as model.policy"
    if kind != "LORA":
        raise ModelError(
            "this adapter cannot be merged",
            expected="a LoRA",
            found=kind,
            where=policy,
            fix=in_place_of(settings.get("peft_type")),
        )
    bias = settings.get("bias", "none")
    if bias != "none" or settings.get("lora_bias"):
        raise ModelError(
            "an adapter that trained biases cannot be merged and switched off again",
            expected='bias = "none"',
            found=f'bias = "{bias}"' if bias != "none" else "lora_bias = true",
            where=policy,
            fix=merge,
        )
    for name in _NOT_MERGED:
        if settings.get(name):  # for one of them peft would import a module that the adapter names
            raise ModelError(
                "this kind of LoRA adapter cannot be merged", expected=f"no {name}", found=name, where=policy, fix=merge
            )


def is_same_base(made_on: str, base: str) -> bool:
    """Whether the name an adapter keeps of its base is the base's: a path or the end of it, or the Hub's name.

    A folder named like a Hub repository is taken for a copy of it; the last part of a path alone says nothing, since
    every policy made here ends in the same one.
    """
    if made_on == base:
        return True
    folder = folder_of(base)
    if folder is None:
        return False
    here, there = folder.resolve(), Path(made_on).expanduser()
    if there.is_dir():
        return there.resolve() == here
    if made_on.count("/") == 1 and not made_on.startswith((".", "~", "/")):
        return there.name == here.name
    return not there.is_absolute() and here.parts[-len(there.parts) :] == there.parts


def check_continuable(settings: Mapping[str, Any], policy: str) -> None:
    """Refuses an adapter that cannot go on being trained, among those that can be merged.

    What it learns is sealed as the difference to what it was, and that is a LoRA only where the adapter adds B A to its
    base's weights, and nothing else.

    Raises:
        ModelError: it is a DoRA, changed its base when it was made, or trained whole modules besides.
    """
    init = str(settings.get("init_lora_weights", True)).lower()
    unfit = {
        "DoRA (use_dora)": settings.get("use_dora"),
        f'init_lora_weights = "{init}", which changes the base': init.startswith(_CHANGE_BASE),
        "modules that were trained whole (modules_to_save)": settings.get("modules_to_save"),
        "trained tokens (trainable_token_indices)": settings.get("trainable_token_indices"),
        "single parameters (target_parameters)": settings.get("target_parameters"),
    }
    for found, is_so in unfit.items():
        if is_so:
            raise ModelError(
                "this adapter cannot go on being trained as it is",
                expected="a plain LoRA on the base's linear layers",
                found=found,
                where=policy,
                fix=_MERGE_IT,
            )


def check_shape(settings: Mapping[str, Any], given: Mapping[str, Any], policy: str) -> None:
    """Refuses a shape that a profile gives and the adapter has not: what goes on being trained is as it was made.

    Args:
        given: those of a profile's `rank`, `alpha`, `targets`, `rslora` and patterns that it states.

    Raises:
        ConfigError: naming the first that differs, and the adapter's own.
    """
    for name, value in given.items():
        own = settings.get(NAMES[name]) or type(value)()
        if not _is_same(value, own):
            raise ConfigError(
                f"train.lora.{name} is not that of the adapter that goes on being trained",
                expected=str(own),
                found=str(value),
                where=policy,
                fix=f'leave train.lora.{name} out; train.lora.start = "fresh" trains an adapter of any shape',
            )


def _is_same(stated: Any, own: Any) -> bool:
    if isinstance(stated, list) and isinstance(own, list):
        return sorted(stated) == sorted(own)
    if isinstance(stated, str) and isinstance(own, list):
        return True  # which names a pattern stands for, only the model can tell
    return bool(stated == own)
