"""Two evaluations held against each other, as far as what is left of them allows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.artifact import Artifact
from engine.evaluation.comparison import not_comparable
from engine.evaluation.held_against import compare, identity_of
from engine.evaluation.intervals import Difference
from engine.promotion.differences import answer_differences, in_tokens
from engine.reports.changes import value
from engine.reports.flips import UNREADABLE, answers_of
from engine.reports.markdown import is_number, plain
from engine.reports.measures import form_of, shown
from engine.reports.moves import Move, Moves

Row = Mapping[str, Any]

# The most telling first.
_ANSWERS = (
    "dpo/adversarial/refused",
    "dpo/normal/refused",
    "dpo/normal/right",
    "dpo/all/empty",
    "dpo/all/repetitive",
    "dpo/all/ended",
    "dpo/adversarial/judged_refused",
    "dpo/normal/judged_refused",
    "dpo/all/kl_per_token",
)
_TOLD = (
    "eval_rewards/accuracies",
    *_ANSWERS,
    "eval_chosen_less_likely",
    "eval_log_ratio_per_token/chosen",
    "eval_log_ratio_per_token/rejected",
    "eval_rewards/margins",
    "eval_loss",
)
_NEED_KNOWN = ("eval_chosen_less_likely", "eval_rewards/margins", "eval_loss")
_ASKING = ("generation", "max_new_tokens")  # of an evaluation's identity, what answers depend on besides the model
_MOST_PAIRS = 20_000  # of more, an interval of half a point's width tells enough
_IN_TOKENS = "the two read and write other tokens: their tokenizers, templates or length limits are others"
_UNKNOWN = "β, reference or loss of one of the two is not known any more"


def results(then: Artifact, now: Artifact, *, same_tokens: bool) -> Moves:
    """What two evaluate artifacts, whole or pruned, say of the same pairs and prompts.

    Where the tables of one of them cannot be read, the numbers that their manifests recorded stand there without a
    difference.

    Args:
        same_tokens: whether both models read and write text in the same tokens.
    """
    if then.digest == now.digest:
        return Moves(same=True)
    apart, caution = _apart(then, now)
    apart |= {} if same_tokens else dict.fromkeys(in_tokens(_TOLD), _IN_TOKENS)
    pairs, of_pairs = _pairs(then, now)
    answers, of_answers = _answers(then, now)
    found = pairs | answers
    for metric in _TOLD:
        if metric not in found and all(is_number(each.metrics.get(metric)) for each in (then, now)):
            found[metric] = Move(metric, shown(then.metrics, metric), shown(now.metrics, metric))
    told = [found[metric] for metric in _TOLD if metric in found and metric not in apart]
    return Moves(told, {name: why for name, why in apart.items() if name in _TOLD}, [*of_pairs, *of_answers], caution)


def reasons_apart(then: Artifact, now: Artifact) -> dict[str, str]:
    """Why metrics of two evaluate artifacts do not mean the same, by metric; see `not_comparable`."""
    return _apart(then, now)[0]


def _apart(then: Artifact, now: Artifact) -> tuple[dict[str, str], str]:
    """The same, and how answers were generated in another way, as a sentence; empty where they were not."""
    try:
        before, after = identity_of(then), identity_of(now)
    except UNREADABLE:
        return dict.fromkeys(_NEED_KNOWN, _UNKNOWN), ""
    ways = [
        f"{name.replace('_', ' ')} {value(before.get(name))} → {value(after.get(name))}"
        for name in _ASKING
        if before.get(name) != after.get(name)
    ]
    caution = f"Answers were generated in another way, which moves their numbers, too: {'; '.join(ways)}."
    return not_comparable(before, after), caution if ways else ""


def _pairs(then: Artifact, now: Artifact) -> tuple[dict[str, Move], list[str]]:
    """What the held-out pairs of both say, and what has to be known of it."""
    try:
        told = compare(now, then, _MOST_PAIRS)
    except UNREADABLE as error:
        return {}, [f"The held-out pairs cannot be compared: {_problem(error)}."]
    apart = bool(told.only_here or told.only_there)
    over = f"over {told.drawn:,} sampled pairs" if told.drawn < told.pairs else ""
    over = over or (f"over the {told.pairs:,} pairs held out in both" if apart else "")
    found = {
        metric: _move(metric, told.means[metric], difference, over)
        for metric, difference in told.differences.items()
        if math.isfinite(difference.value)
    }
    return found, list(_which_pairs(told.pairs, told.drawn, told.only_there, told.only_here))


def _which_pairs(both: int, drawn: int, then: int, now: int) -> Iterator[str]:
    if then or now:
        yield f"Of the held-out pairs, {both:,} were held out in both, {then:,} then alone and {now:,} now alone."
    if drawn < both:
        yield f"Of {both:,} pairs, {drawn:,} were sampled."


def _answers(then: Artifact, now: Artifact) -> tuple[dict[str, Move], list[str]]:
    """What the answers to prompts that both were asked say, and what has to be known of it."""
    try:
        before, after = answers_of(then), answers_of(now)
    except UNREADABLE as error:
        return {}, [f"The answers cannot be compared: {_problem(error)}."]
    both = [asked for asked in after if asked in before]
    apart = not len(both) == len(before) == len(after)
    over = f"over the {len(both):,} prompts asked in both" if apart else ""
    first, second = [after[asked] for asked in both], [before[asked] for asked in both]
    found = {
        metric: _move(metric, _means(metric, second, first), difference, over)
        for metric, difference in answer_differences(first, second, _ANSWERS, 0).items()
        if math.isfinite(difference.value)
    }
    if not apart:
        return found, []
    alone = f"{len(before) - len(both):,} then alone and {len(after) - len(both):,} now alone"
    return found, [f"Of the prompts, {len(both):,} were asked in both, {alone}."]


def _move(metric: str, means: tuple[float, float], difference: Difference, over: str) -> Move:
    then, now = map(form_of(metric), means)
    return Move(metric, then, now, difference, over)


def _problem(error: Exception) -> str:
    return plain(getattr(error, "problem", error), 200)


def _means(metric: str, then: Sequence[Row], now: Sequence[Row]) -> tuple[float, float]:
    """The means of the answers for which both know it."""
    _, kind, column = metric.split("/")
    known = [
        (float(one[column]), float(other[column]))
        for one, other in zip(then, now, strict=True)
        if kind in ("all", one["kind"]) and one[column] is not None and other[column] is not None
    ]
    before, after = zip(*known, strict=True)
    return sum(before) / len(known), sum(after) / len(known)
