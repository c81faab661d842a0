"""The few numbers of each stage that are worth a line, with names that a newcomer understands."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import StoreError
from engine.reports.markdown import interval, number, plain, points, share
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


def _memory(metrics: Metrics) -> str:
    count = _present(metrics["peak_memory_bytes"]) / 2**20
    return f"{count / 1024:.1f} GiB" if count >= 1024 else f"{count:.0f} MiB"


def _with_share(name: str, whole: str) -> Callable[[Metrics], str]:
    return lambda metrics: f"{number(metrics[name])} ({share(metrics[name] / metrics[whole])})"


def _accuracy(metrics: Metrics) -> str:
    shown = share(metrics["eval_rewards/accuracies"])
    beside = {
        "before the training": metrics.get("start/eval_rewards/accuracies"),
        "by their length alone": metrics.get("eval_length_baseline", metrics.get("eval_longer_wins")),
    }
    told = "; ".join(f"{what}: {share(value)}" for what, value in beside.items() if value is not None)
    return f"{shown} ({told})" if told else shown


def _before_and_after(kind: str, rate: str) -> Callable[[Metrics], str]:
    return lambda metrics: f"{share(metrics[f'start/{kind}/{rate}'])} → {share(metrics[f'dpo/{kind}/{rate}'])}"


def _difference(name: str) -> Callable[[Metrics], str]:
    def shown(metrics: Metrics) -> str:
        bounds = (metrics.get("intervals") or {}).get(f"difference/{name}")
        return f"{interval(_present(metrics[f'difference/{name}']), bounds, points)} points"

    return shown


def _in_service(metrics: Metrics) -> str:
    version = metrics["in_service"]
    return plain(version) if version else "none"


def _held_against_it(name: str) -> Callable[[Metrics], str]:
    return lambda metrics: number(metrics[name] if metrics["in_service"] else _present(None))


def _monitor(metrics: Metrics) -> str:
    count = metrics["findings"] if isinstance(metrics["findings"], int) else len(metrics["findings"])
    seen = f"{number(count)} {'sign' if count == 1 else 'signs'} of trouble" if count else "nothing out of the ordinary"
    stopped = metrics.get("stopped_at")
    return seen if stopped is None else f"{seen}; stopped at step {number(stopped)}"


def _verdict(metrics: Metrics) -> str:
    return {"promote": "passed", "keep": "not passed"}.get(metrics["verdict"]) or plain(metrics["verdict"])


def _unmet(metrics: Metrics) -> str:
    return plain(", ".join(map(str, metrics["rules_failed"])) or "none")


_SPENT: list[Headline] = [
    ("tokens a second", _value("tokens_per_second")),
    ("most memory", _memory),
]

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
        *_SPENT,
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
        ("seen while training", _monitor),
        *_SPENT,
    ],
    "evaluate": [
        ("harmful requests refused", _before_and_after("adversarial", "refused")),
        ("normal requests refused", _before_and_after("normal", "refused")),
        ("normal requests answered right", _before_and_after("normal", "right")),
        ("held-out pairs put right", _accuracy),
        ("mean margin on held-out pairs", _value("eval_rewards/margins")),
    ],
    "compare": [
        ("model in service", _in_service),
        ("held-out pairs put right, against it", _difference("eval_rewards/accuracies")),
        ("pairs compared", _held_against_it("pairs")),
        ("pairs left out: it was trained on them", _held_against_it("trained_on")),
    ],
    "promote": [
        ("verdict of the gate", _verdict),
        ("rules that are not met", _unmet),
    ],
}
