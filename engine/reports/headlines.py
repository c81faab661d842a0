"""The few numbers of each stage that are worth a line, with names that a newcomer understands."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import StoreError
from engine.reports.markdown import number, share
from engine.store import Artifact

Metrics = Mapping[str, Any]
Headline = tuple[str, Callable[[Metrics], str]]


def headline(artifact: Artifact, *, reused: bool = False) -> list[tuple[str, str]]:
    """(what, number) for people, the most telling first; numbers the stage did not record are left out.

    Args:
        reused: whether a run took the artifact as it was, so that nothing was scored for that run.
    """
    try:
        metrics = dict(artifact.metrics)
    except (StoreError, KeyError):
        return []
    if reused and "pairs_scored" in metrics:
        metrics |= {"pairs_scored": 0, "pairs_reused": metrics.get("pairs")}
        metrics.pop("tokens_per_second", None)
    found = []
    for label, shown in HEADLINES.get(artifact.stage, []):
        try:
            found.append((label, shown(metrics)))
        except (KeyError, TypeError, ZeroDivisionError):  # not recorded, or no number
            continue
    return found


def _value(name: str) -> Callable[[Metrics], str]:
    return lambda metrics: number(_present(metrics[name]))


def _present(value: Any) -> Any:
    if value is None:
        raise TypeError
    return value


def _with_share(name: str, whole: str) -> Callable[[Metrics], str]:
    return lambda metrics: f"{number(metrics[name])} ({share(metrics[name] / metrics[whole])})"


def _accuracy(metrics: Metrics) -> str:
    shown = share(metrics["eval_rewards/accuracies"])
    baseline = metrics.get("eval_longer_wins")
    return shown if baseline is None else f"{shown} (always taking the longer answer: {share(baseline)})"


def _before_and_after(kind: str, rate: str) -> Callable[[Metrics], str]:
    return lambda metrics: f"{share(metrics[f'start/{kind}/{rate}'])} → {share(metrics[f'dpo/{kind}/{rate}'])}"


HEADLINES: dict[str, list[Headline]] = {
    "download": [
        ("pairs", _value("pairs")),
        ("rows refused", _with_share("refused", "rows_read")),
        ("format", _value("formats")),
    ],
    "tokenize": [
        ("pairs", _value("pairs")),
        ("tokens", _value("tokens")),
        ("longest, in tokens", _value("longest")),
        ("dropped", _value("dropped")),
    ],
    "subsample": [
        ("pairs to train on", _value("train_pairs")),
        ("pairs held out", _value("eval_pairs")),
        ("duplicates set aside", _value("duplicates")),
        ("contradictions set aside", _value("contradictions")),
    ],
    "sft": [
        ("loss at the end", _value("loss")),
        ("steps", _value("steps")),
        ("parameters", _value("parameters")),
    ],
    "reference": [
        ("pairs scored", _value("pairs_scored")),
        ("pairs whose scores were there", _value("pairs_reused")),
        ("tokens a second", _value("tokens_per_second")),
    ],
    "train": [
        ("loss at the end", _value("loss")),
        ("pairs put right", lambda metrics: share(metrics["rewards/accuracies"])),
        ("mean margin", _value("rewards/margins")),
        ("steps", _value("steps")),
    ],
    "evaluate": [
        ("harmful requests refused", _before_and_after("adversarial", "refused")),
        ("normal requests answered right", _before_and_after("normal", "right")),
        ("held-out pairs put right", _accuracy),
        ("mean margin on held-out pairs", _value("eval_rewards/margins")),
    ],
}
