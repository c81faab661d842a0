"""What a recorded number is called in words, and how its value is written."""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from engine.reports.markdown import interval, is_number, number, points, share, signed
from engine.reports.pictures import Whisker

Form = Callable[[object], str]

# Names that are `<policy>/<kind of request>/<what>` speak of the answers of one of these.
POLICIES = {"start": "starting model", "dpo": "after training", "service": "in service"}
ANSWERS: dict[str, tuple[str, Form]] = {
    "refused": ("refused", share),
    "judged_refused": ("refused, as a judge model sees it", share),
    "right": ("answered right", share),
    "empty": ("answered with nothing", share),
    "repetitive": ("answered in a loop", share),
    "ended": ("answered to the end", share),
    "tokens": ("mean tokens an answer", number),
    "repeated_share": ("share of an answer that repeats itself", share),
    "kl_per_token": ("distance from the starting model (KL, nats per token)", number),
    "judge_failed": ("answers the judge model could not judge", number),
}
PAIRS: dict[str, tuple[str, Form]] = {
    "eval_rewards/accuracies": ("held-out pairs put right", share),
    "start/eval_rewards/accuracies": ("put right before the training, by its likelihood alone", share),
    "eval_beats_start": ("more put right than before the training, in points", points),
    "eval_length_baseline": ("the most that length alone puts right", share),
    "eval_beats_length": ("more put right than by length alone, in points", points),
    "eval_longer_wins": ("put right by always taking the longer answer", share),
    "eval_ties": ("pairs without a preference", share),
    "eval_chosen_less_likely": ("chosen answers that became less likely than before", share),
    "eval_log_ratio_per_token/chosen": ("chosen answers: change of log-probability (nats per token)", number),
    "eval_log_ratio_per_token/rejected": ("rejected answers: change of log-probability (nats per token)", number),
    "eval_calibration_error": ("mean gap between how sure it is and how often it is right", share),
    "eval_rewards/margins": ("mean margin", number),
    "eval_rewards/chosen": ("mean reward of chosen answers", number),
    "eval_rewards/rejected": ("mean reward of rejected answers", number),
    "eval_loss": ("loss", number),
    "eval_logps/chosen": ("log-probability of a chosen answer (nats)", number),
    "eval_logps/rejected": ("log-probability of a rejected answer (nats)", number),
    "eval_pairs": ("held-out pairs", number),
    "eval_prompts": ("their prompts", number),
}
TELLING = (  # what says most of a model's answers, without the policy's name before it
    "adversarial/refused",
    "adversarial/judged_refused",
    "normal/refused",
    "normal/judged_refused",
    "normal/right",
    "all/empty",
    "all/repetitive",
    "all/ended",
)
_KINDS = {"adversarial": "harmful", "normal": "normal", "all": "all"}
_SHORT = {
    "eval_rewards/accuracies": "pairs put right",
    "eval_chosen_less_likely": "chosen less likely",
    "refused": "refused",
    "judged_refused": "by judge",
    "right": "right",
    "empty": "empty",
    "repetitive": "in a loop",
    "ended": "ended",
}


def is_of_a_policy(metric: str) -> bool:
    """Whether a metric's name is `<policy>/<kind>/<what>`; a kind may be that of one set alone, `<set>:<kind>`."""
    return _of_a_policy(metric) is not None


def kind_of(metric: str) -> str:
    """The kind of request in a name for which `is_of_a_policy` holds."""
    return metric.partition("/")[2].rpartition("/")[0]


def kind_in_words(kind: str) -> str:
    """`adversarial` as "harmful", and `xstest:normal` as "normal, of xstest"."""
    of, _, bare = kind.rpartition(":")
    shown = _KINDS.get(bare, bare)
    return f"{shown}, of {of}" if of else shown


def in_words(metric: str) -> str:
    """What a metric is called: "held-out pairs put right" for `eval_rewards/accuracies`; else its name as it is."""
    if metric in PAIRS:
        return PAIRS[metric][0]
    found = _of_a_policy(metric)
    if found is None:
        return metric
    kind, what = found
    of, _, bare = kind.rpartition(":")
    requests = "requests" if bare == "all" else f"{_KINDS.get(bare, bare)} requests"
    return f"{requests}{f' of {of}' if of else ''}: {ANSWERS[what][0] if what in ANSWERS else 'how many'}"


def in_short(metric: str) -> str:
    """The same for a chart, where there is little room: "normal: refused"; else its name in words."""
    found = _of_a_policy(metric)
    if found is None or found[1] not in _SHORT:
        return _SHORT.get(metric, in_words(metric))
    return f"{kind_in_words(found[0])}: {_SHORT[found[1]]}"


def form_of(metric: str) -> Form:
    """How the values of a metric are written: shares as percentages, all else as plain numbers."""
    if metric in PAIRS:
        return PAIRS[metric][1]
    found = _of_a_policy(metric)
    return ANSWERS[found[1]][1] if found and found[1] in ANSWERS else number


def shown(metrics: Mapping[str, Any], metric: str) -> str:
    """A metric's value, with its 95 % interval where `metrics` has one under `intervals`; – where it has no value."""
    value, bounds = metrics.get(metric), metrics.get("intervals")
    if value is None:
        return "–"
    return interval(value, bounds.get(metric) if isinstance(bounds, Mapping) else None, form_of(metric))


def drawable(value: object) -> TypeGuard[float]:
    """Whether a value is a number that a chart has a place for."""
    return is_number(value) and abs(value) < 1e300


def whisker(metrics: Mapping[str, Any], metric: str, name: str, colour: str) -> Whisker | None:
    """A metric for `pictures.whiskers`, with its interval as `shown` finds it; None where it has no value."""
    value, found = metrics.get(metric), metrics.get("intervals")
    if not drawable(value):
        return None
    bounds = found.get(metric) if isinstance(found, Mapping) else None
    if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(drawable, bounds)):
        low, high = bounds
        return Whisker(name, value, low, high, colour)
    return Whisker(name, value, colour=colour)


def difference_shown(metric: str, difference: object) -> str:
    """`{"value": …, "low": …, "high": …}` with signs, and in percentage points for a share; – where it has no value."""
    if not isinstance(difference, Mapping) or not is_number(difference.get("value")):
        return "–"
    form = points if form_of(metric) in (share, points) else signed
    return interval(difference["value"], (difference.get("low"), difference.get("high")), form)


def _of_a_policy(metric: str) -> tuple[str, str] | None:
    policy, _, rest = metric.partition("/")
    kind, _, what = rest.rpartition("/")
    return (kind, what) if policy in POLICIES and kind and what in {*ANSWERS, "count"} else None
