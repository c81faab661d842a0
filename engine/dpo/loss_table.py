"""The losses by the names that configs give them. To add one: a class, a line here, and one in engine/loss_config.py.

That file cannot import this one, which needs torch; a test holds the two together.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from engine.dpo.divergences import divergence
from engine.dpo.losses import Loss, WeightedSum
from engine.dpo.margin_losses import Discopop, ExoPair, Hinge, Ipo, Robust, Sigmoid, SigmoidNorm
from engine.dpo.reference_free import Orpo, Sft, Simpo
from engine.dpo.side_losses import ApoDown, ApoZero, BcoPair, NcaPair, SppoHard
from engine.dpo.sorted_losses import Aot, AotUnpaired

LOSSES: Mapping[str, Callable[..., Loss]] = {
    "sigmoid": Sigmoid,
    "hinge": Hinge,
    "ipo": Ipo,
    "exo_pair": ExoPair,
    "nca_pair": NcaPair,
    "robust": Robust,
    "bco_pair": BcoPair,
    "sppo_hard": SppoHard,
    "aot": Aot,
    "aot_unpaired": AotUnpaired,
    "apo_zero": ApoZero,
    "apo_down": ApoDown,
    "discopop": Discopop,
    "sft": Sft,
    "sigmoid_norm": SigmoidNorm,
    "simpo": Simpo,
    "orpo": Orpo,
}


def build(spec: Mapping[str, Any]) -> WeightedSum:
    """The loss that a training hands down as plain values.

    Args:
        spec: `beta`; `loss`, a list of terms with `name`, `weight` and their own parameters; `f_divergence_type`,
            `f_alpha_divergence_coef`, `ld_alpha` and `use_weighting`, without which it is plain DPO's. Whatever else it
            holds is passed over, in a term as well.
    """
    weighting, alpha = spec.get("use_weighting", False), spec.get("ld_alpha")
    shared = {
        "beta": spec["beta"],
        "divergence": divergence(spec.get("f_divergence_type", "reverse_kl"), spec.get("f_alpha_divergence_coef", 0.5)),
        "coupled": weighting,
    }
    terms = [(term["weight"], _loss(term, shared)) for term in spec["loss"]]
    return WeightedSum(terms, None if alpha == 1 else alpha, weighting)  # at 1 the weighted sums are the plain ones


def _loss(term: Mapping[str, Any], shared: Mapping[str, Any]) -> Loss:
    kind = LOSSES[term["name"]]
    given = {**term, **shared}
    return kind(**{each.name: given[each.name] for each in fields(kind) if each.name in given})  # type: ignore[arg-type]
