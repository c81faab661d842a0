"""The loss of a model that was trained, read again from what its training handed down, by whichever version."""

from collections.abc import Mapping
from typing import Any

from engine.loss_config import PARAMETERS, REFERENCE_FREE, LossTerm, PreferenceConfig

_SHARED = {name: each for name, each in PreferenceConfig.model_fields.items() if name not in ("beta", "loss")}


def loss_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """The loss in plain values, as `PreferenceConfig.spec` has them; equal exactly where the same loss is meant.

    What an earlier version did not write down has its default; what it wrote of a term that has no such parameter is
    left out, and so is all that is not of the loss: a term that weighs nothing, too. Values that nobody can make sense
    of stay as they are, and what has no default, `beta` and `loss`, is missing where it is missing.
    """
    shared = {name: told.get(name, each.get_default()) for name, each in _SHARED.items()}
    if shared["ld_alpha"] == 1:
        shared["ld_alpha"] = None
    terms = told.get("loss")
    loss = {"loss": [_term(term) for term in terms if _weighs(term)]} if isinstance(terms, list) else {}
    return ({"beta": told["beta"]} if "beta" in told else {}) | shared | loss


def is_reference_free(told: Mapping[str, Any]) -> bool:
    """Whether the reference plays no part in that loss; an unknown one is taken for one that has a reference."""
    terms = told.get("loss")
    listed = terms if isinstance(terms, list) else []
    names = [term.get("name") if isinstance(term, Mapping) else None for term in listed]
    return bool(names) and all(isinstance(name, str) and name in REFERENCE_FREE for name in names)


def _weighs(told: object) -> bool:
    return not isinstance(told, Mapping) or told.get("weight") != 0


def _term(told: object) -> object:
    try:
        own = {name: told[name] for name in ("name", "weight", *PARAMETERS[told["name"]]) if name in told}  # type: ignore[index, operator]
        return LossTerm.model_validate(own).identity()
    except (LookupError, TypeError, ValueError):
        return told
