"""The loss of a training in a few words: its terms with their parameters, and what holds for all of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from engine.reports.markdown import code, is_number, number, plain

_LONGEST = 60  # characters of a name
_PARAMETERS = {"label_smoothing": "labels smoothed by", "discopop_tau": "τ", "simpo_gamma": "γ"}


def terms(loss: Mapping[str, Any]) -> str:
    """Its terms as markdown, `sigmoid (labels smoothed by 0.1) + 0.5 × sft`; nothing where they are not told.

    Args:
        loss: the keys of `PreferenceConfig.spec`; what an earlier version did not write is missing.
    """
    told = loss.get("loss")
    listed = told if isinstance(told, list) else []
    return " + ".join(_term(term) for term in listed if isinstance(term, Mapping) and term.get("name"))


def shared(loss: Mapping[str, Any]) -> Iterator[str]:
    """What holds for every term besides β, as pieces of markdown; what is as in plain DPO is not mentioned."""
    divergence, alpha = loss.get("f_divergence_type"), loss.get("f_alpha_divergence_coef")
    if isinstance(divergence, str) and divergence != "reverse_kl":
        yield code(divergence) + (f" with α {number(alpha)}" if divergence == "alpha_divergence" else "")
    if is_number(loss.get("ld_alpha")):
        yield f"tokens beyond the shorter response weigh {number(loss['ld_alpha'])}"
    if loss.get("use_weighting") is True:
        yield "pairs weighed by how likely the policy is to say them"


def _term(term: Mapping[str, Any]) -> str:
    weight = term.get("weight", 1.0)
    times = f"{number(weight)} × " if is_number(weight) and weight != 1 else ""
    given = [(words, term.get(name)) for name, words in _PARAMETERS.items()]
    parameters = ", ".join(f"{words} {number(value)}" for words, value in given if is_number(value) and value)
    return f"{times}{code(plain(term['name'], _LONGEST))}" + (f" ({parameters})" if parameters else "")
