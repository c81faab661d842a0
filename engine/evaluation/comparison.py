"""Two evaluations held against each other, pair by pair: which is better, how sure that is, and which pairs got worse.

Both are EVALUATED rows, of tonight's model and of another one, and are joined by `pair_id`: no matter in which order
they are, or whether one of them has more.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.evaluation.intervals import Difference, paired_differences
from engine.evaluation.pairs import AHEAD, CEILING, LONGER, RIGHT, SHARES, clusters, measures
from engine.trained_loss import is_reference_free, loss_of

Row = Mapping[str, Any]

_REWARDS = ("eval_rewards/chosen", "eval_rewards/rejected", "eval_rewards/margins", "eval_calibration_error")
_LOGPS = ("eval_logps/chosen", "eval_logps/rejected", "eval_chosen_less_likely")  # of plain sums, whatever was trained
_JUDGED = (RIGHT, "eval_ties", AHEAD, CEILING)
# What must be the same in both for a metric to mean the same. A log-ratio per token has the reference in it, too, but
# it says in any case how far the training went; a share of what became less likely than before does not. Accuracy is of
# the rewards that a model was trained by: a likelihood puts pairs right before anything is learnt, a log-ratio none.
_NEEDS_SAME = {
    "beta": ("eval_loss", *_REWARDS),
    "reference": ("eval_loss", *_REWARDS, *_LOGPS),
    "loss": ("eval_loss",),
    "reward": ("eval_loss", *_REWARDS, *_JUDGED),
    "tokens": ("eval_loss", *_REWARDS, *_JUDGED),
}
_WHY = {
    "reference": "the reference policies differ",
    "loss": "they were trained with different losses",
    "reward": "one is rewarded for its log-ratio to a reference, the other for its own log-probability a token",
    "tokens": "they were trained with different weights of the tokens beyond the shorter response (ld_alpha)",
}


def common(tonight: Sequence[Row], other: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the pairs that both have, in tonight's order."""
    there = {row["pair_id"]: row for row in other}
    mine = [row for row in tonight if row["pair_id"] in there]
    return mine, [there[row["pair_id"]] for row in mine]


def differences(
    tonight: Sequence[Row], other: Sequence[Row], seed: int, without: Collection[str] = ()
) -> dict[str, Difference]:
    """Tonight's mean minus the other's over the pairs that both have, by metric, with paired 95 % intervals.

    Args:
        without: metrics that are not comparable; see `not_comparable`.

    Returns:
        Nothing where they have no pair in common. What is of the pairs and not of the models is left out.
    """
    mine, theirs = common(tonight, other)
    if not mine:
        return {}
    told = {name: column for name, column in measures(mine).items() if name != LONGER and name not in without}
    return paired_differences(told, measures(theirs), clusters(mine), seed, SHARES)


def not_comparable(tonight: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that mean something else in one evaluation than in the other, and why, in words.

    Args:
        tonight, other: `beta`, `reference` (the identity of the reference policy), `loss` and the other keys of each
            that `loss_of` reads; of `beta`, `reference` and `loss`, what is not known of one of them is not equal.
    """
    mine, theirs, found = _meaning(tonight), _meaning(other), dict[str, list[str]]()
    for name, metrics in _NEEDS_SAME.items():
        if mine[name] is None or mine[name] != theirs[name]:
            for metric in metrics:
                found.setdefault(metric, []).append(_why(name, tonight, other))
    return {metric: "; ".join(reasons) for metric, reasons in found.items()}


def _meaning(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of an evaluation mean something under, by the names of `_NEEDS_SAME`."""
    loss = loss_of(told)
    beta, tokens = loss.pop("beta", None), loss.pop("ld_alpha")
    loss.pop("use_weighting")  # an evaluation leaves the weights of pairs out
    return {
        "beta": beta,
        "reference": told.get("reference"),
        "loss": loss if "loss" in loss else None,
        "reward": "mean" if is_reference_free(told) else "log-ratio",
        "tokens": "all alike" if tokens is None else tokens,
    }


def compared_rows(tonight: Sequence[Row], other: Sequence[Row]) -> list[dict[str, Any]]:
    """One COMPARED row for each pair that both have; the other model is the one "in service" there."""
    mine, theirs = common(tonight, other)
    if not mine:
        return []
    sides = {"tonight": (mine, measures(mine)[RIGHT]), "service": (theirs, measures(theirs)[RIGHT])}
    return [
        {name: row[name] for name in ("pair_id", "prompt_id", "source")}
        | {f"{side}_right": float(right[place]) for side, (_, right) in sides.items()}
        | {f"{side}_log_ratio_margin": log_ratio_margin(rows[place]) for side, (rows, _) in sides.items()}
        for place, row in enumerate(mine)
    ]


def got_worse(compared: Sequence[Row]) -> list[Row]:
    """Of COMPARED rows those that the other model had right, or tied, and tonight's has not; the deepest fall first.

    The fall is that of the log-ratio margin, which has no β in it.
    """
    return _ordered([row for row in compared if row["tonight_right"] < row["service_right"]], 1)


def got_better(compared: Sequence[Row]) -> list[Row]:
    """The other way round, the highest rise first."""
    return _ordered([row for row in compared if row["tonight_right"] > row["service_right"]], -1)


def change(compared: Row) -> float:
    """By how much the log-ratio margin of a COMPARED row is above the other model's, in nats."""
    return float(compared["tonight_log_ratio_margin"] - compared["service_log_ratio_margin"])


def log_ratio_margin(row: Row) -> float:
    """Of an EVALUATED row the log-ratio of the chosen response minus that of the rejected one, in nats, without β."""
    chosen, rejected = (row[f"policy_{side}_logps"] - row[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
    return float(chosen - rejected)


def _ordered(rows: Sequence[Row], sign: int) -> list[Row]:
    return sorted(rows, key=lambda row: (sign * change(row), row["pair_id"]))


def _why(name: str, tonight: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if name == "beta":
        return "β differs: {} and {}".format(*(each.get(name) or "unknown" for each in (tonight, other)))
    return _WHY[name]
