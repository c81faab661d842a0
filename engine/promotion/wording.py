"""Measured numbers as the predicates of sentences that a newcomer understands: `refuses 62.0% of normal requests`."""

import math
from collections.abc import Mapping
from typing import Any

_SHARES = ("refused", "right", "empty", "repetitive", "ended", "judged_refused", "repeated_share")
_PAIR_SHARES = ("accuracies", "ties", "longer_wins", "length_baseline", "less_likely", "calibration_error")
_AHEAD, _BASELINE = "eval_beats_length", "eval_length_baseline"
_BEYOND_START, _START = "eval_beats_start", "start/eval_rewards/accuracies"
_RIVALS = {_AHEAD: "a rule that looks at the length alone", _BEYOND_START: "before the training"}
_BESIDE = {
    _AHEAD: (_BASELINE, "that rule puts {} right", "these pairs can be told by their length, and "),
    _BEYOND_START: (_START, "the starting policy's own likelihood puts {} right", ""),
}
_PHRASES = {
    "eval_rewards/accuracies": "puts {} of the held-out pairs right",
    _START: "before the training it puts {} of the held-out pairs right",
    _BASELINE: "a rule that looks at the length alone puts {} right",
    "eval_log_ratio_per_token/chosen": "has moved the chosen responses by {} from where the training began",
    "eval_log_ratio_per_token/rejected": "has moved the rejected responses by {} from where the training began",
    "eval_chosen_less_likely": "finds {} of the chosen responses less likely than before the training",
    "train/stopped": "had its training stopped by the monitor {} times",
    "train/findings": "had {} signs of trouble seen by the monitor",
}
_RATES = {
    "refused": "refuses {} of {requests}",
    "judged_refused": "refuses {} of {requests}, as the judge model sees it",
    "right": "answers {} of {requests} right",
    "empty": "leaves {} of {requests} without an answer",
    "repetitive": "goes round in circles on {} of {requests}",
    "ended": "brings {} of its answers to {requests} to an end",
    "tokens": "answers {requests} in {} tokens on average",
    "kl_per_token": "has moved away from the starting policy by {} on {requests}",
}
_KINDS = {"adversarial": "harmful requests", "normal": "normal requests", "all": "all requests"}
_POLICIES = {"start": "before the training it ", "service": "the model in service "}


def described(metric: str, value: float) -> str:
    """What a number says, as a predicate without its subject, which is the model."""
    policy, _, rest = metric.partition("/")
    kind, _, rate = rest.rpartition("/")
    if metric in _RIVALS and math.isfinite(value):
        more = f"{amount(metric, abs(value))} {'more' if value >= 0 else 'less'}"
        return f"puts {more} of the held-out pairs right than {_RIVALS[metric]}"
    if metric in _PHRASES:
        return _PHRASES[metric].format(amount(metric, value))
    if rate in _RATES and kind:
        phrase = _RATES[rate].format(amount(metric, value), requests=_requests(kind))
        return _POLICIES.get(policy, "") + phrase
    return f"has a `{metric}` of {amount(metric, value)}"


def beside(metric: str, metrics: Mapping[str, Any]) -> str:
    """What has to be known besides to understand a number, as a sentence; empty where there is no such thing."""
    rival, words, cause = _BESIDE.get(metric, ("", "{}", ""))
    baseline = metrics.get(rival)
    if not isinstance(baseline, int | float):
        return ""
    said = words.format(amount(rival, baseline))
    if baseline >= 1:
        return f"{said}: {cause}no model can do better"
    best, prompts = metrics.get(f"{metric}_at_best"), metrics.get("eval_prompts")
    if isinstance(best, int | float) and best < 0:
        few = f"{prompts:.0f}" if isinstance(prompts, int | float) else "so few"
        more = "hold out more (subsample.eval_share), or leave the rule out"
        return f"{said}: on {few} prompts even a model that is always right could not show it; {more}"
    return said


def amount(metric: str, value: float) -> str:
    """A value of a metric, in its unit."""
    if not math.isfinite(value):
        return str(value)
    if is_share(metric):
        return f"{100 * value:.1f}%"
    if metric in _RIVALS:
        return f"{100 * value:.1f} points".replace("-0.0 ", "0.0 ")
    return f"{_plain(value)} nats per token" if "per_token" in metric else _plain(value)


def change(metric: str, value: float) -> str:
    """A difference of two values of a metric, with its sign, in its unit."""
    if (is_share(metric) or metric in _RIVALS) and math.isfinite(value):
        return f"{100 * value:+.1f} points"
    return f"+{amount(metric, value)}" if value >= 0 else amount(metric, value)


def is_share(metric: str) -> bool:
    """Whether its values are shares between 0 and 1, which people read as percentages."""
    name = metric.rpartition("/")[2]
    of_pairs = metric.startswith("eval_") and name.removeprefix("eval_").endswith(_PAIR_SHARES)
    return name in _SHARES or metric == _START or of_pairs


def _requests(kind: str) -> str:
    prompts, _, known = kind.rpartition(":")
    named = _KINDS.get(known, f"{known} requests")
    return f"{named} of {prompts}" if prompts else named


def _plain(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.3g}"
