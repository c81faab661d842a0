"""What tonight's model answers differently from the one in service, and what has their tokens for its unit.

The differences over pairs are those of `engine.evaluation.comparison`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.evaluation.answers import MEANS, RATES
from engine.evaluation.intervals import Difference, paired_difference

Row = Mapping[str, Any]

_WHY = "the model in service reads and writes other tokens: its tokenizer, template or length limits are others"
_PAIRS_IN_TOKENS = tuple(
    f"eval_{name}/{side}" for name in ("logps", "log_ratio_per_token") for side in ("chosen", "rejected")
)
_ANSWERS_IN_TOKENS = ("tokens", "kl_per_token")


def answer_differences(
    tonight: Sequence[Row], service: Sequence[Row], names: Collection[str], seed: int
) -> dict[str, Difference]:
    """Tonight's rate minus that of the model in service, by metric, with paired 95 % intervals over prompts.

    Args:
        tonight, service: GENERATIONS rows of the same prompts in the same order.
        names: the metrics wanted, `<policy>/<kind>/<rate>` as `generation_metrics` has them. What is no rate or mean of
            answers, such as their count, is left out; so is a rate that is never known of both answers to a prompt.
    """
    found: dict[str, Difference] = {}
    for name in names:
        kind, rate = name.split("/")[1:]
        if rate not in RATES + MEANS:
            continue
        both = [(one[rate], other[rate]) for one, other in zip(tonight, service, strict=True) if kind in _kinds(one)]
        known = [(float(one), float(other)) for one, other in both if one is not None and other is not None]
        if known:
            first, second = zip(*known, strict=True)
            found[name] = paired_difference(first, second, None, seed, share=rate in RATES)
    return found


def in_tokens(names: Collection[str]) -> dict[str, str]:
    """Those metrics that mean something else for a model with other tokens, and why, in words."""
    return {name: _WHY for name in names if name in _PAIRS_IN_TOKENS or name.rpartition("/")[2] in _ANSWERS_IN_TOKENS}


def _kinds(row: Row) -> tuple[str, str, str]:
    """The names under which an answer is counted."""
    return "all", row["kind"], f"{row['prompt_set']}:{row['kind']}"
