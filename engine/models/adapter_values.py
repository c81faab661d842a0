"""The values in adapter_config.json: what is not as peft writes it is named, before it is taken for a wrong base.

Nothing heavy is imported here: an adapter in a folder is looked at when a run is planned.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.errors import ModelError

_PROMPTS = (  # what these learn stands before the prompt, in no weight of the model
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
)  # fmt: skip
_ANEW = "save the adapter anew with peft where it was trained, or put its true value into adapter_config.json"


def in_place_of(kind: object) -> str:
    """What to do with an adapter of another `peft_type` than LORA, or of none."""
    if kind in _PROMPTS:
        return "train a LoRA instead: what this kind learns stands before the prompt, and cannot be merged into weights"
    if not isinstance(kind, str) or not kind:
        return 'if it is a LoRA, add "peft_type": "LORA" to adapter_config.json; save it anew with peft otherwise'
    return "where it was trained, merge it with peft if peft can, and give the whole model as model.policy"


def check_values(settings: Mapping[str, Any], policy: str) -> None:
    """Refuses a LoRA whose rank, scale, dropout or targets are missing or are nothing that peft can have written.

    peft takes a number that is missing for its own default and merges one that is no number, so that the policy would
    be another model than the one that was trained, or none.

    Raises:
        ModelError: naming the first that is wrong.
    """
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    targets, dropout = settings.get("target_modules"), settings.get("lora_dropout", 0.0)
    right = {
        "r": (_is_rank(settings.get("r")), "a whole number from 1"),
        "lora_alpha": (_is_number(settings.get("lora_alpha")), "a finite number"),
        "lora_dropout": (_is_number(dropout) and 0 <= dropout <= 1, "a number from 0 to 1"),
        "rank_pattern": (_all(ranks, _is_rank), "whole numbers from 1 by the names of layers"),
        "alpha_pattern": (_all(alphas, _is_number), "finite numbers by the names of layers"),
        "target_modules": (_names(targets or settings.get("target_parameters")), "names of layers, or a pattern"),
    }
    for name, (is_right, expected) in right.items():
        if not is_right:
            found = repr(settings[name]) if name in settings else "nothing"
            raise _wrong(name, expected, f"{found:.200}", policy)


def check_ranks(settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], policy: str) -> None:
    """Refuses weights of a rank that the adapter's config does not state.

    Args:
        settings: as `check_values` lets them pass.
        shapes: of the adapter's weights, by name.

    Raises:
        ModelError: naming the first.
    """
    stated = {settings["r"], *(settings.get("rank_pattern") or {}).values()}
    for name, shape in shapes.items():
        if _is_down(name) and shape and shape[0] not in stated and not settings.get("target_parameters"):
            expected = " or ".join(map(str, sorted(stated)))
            raise _wrong("r", f"{expected}, as adapter_config.json states", f"{shape[0]} in {name}", policy)


def _is_down(name: str) -> bool:
    return name.endswith(("lora_A.weight", "lora_embedding_A"))


def _wrong(name: str, expected: str, found: str, policy: str) -> ModelError:
    return ModelError(
        f"`{name}` of the adapter is not what it was trained with",
        expected=expected,
        found=found,
        where=policy,
        fix=_ANEW,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _all(pattern: object, is_right: Any) -> bool:
    return isinstance(pattern, Mapping) and all(map(is_right, pattern.values()))


def _names(targets: object) -> bool:
    if isinstance(targets, str):
        return bool(targets)
    return isinstance(targets, Iterable) and bool(targets) and all(isinstance(each, str) for each in targets)
