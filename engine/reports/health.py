"""The health checks of a training: how often the policy refused or said nothing of use, and what it said."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from engine.judging import is_empty, is_refusal, is_repetitive
from engine.reports.measures import kind_in_words
from engine.reports.page import Answers, Exchange, Said
from engine.reports.steps import Columns, lines_of
from engine.store import Artifact
from engine.training.monitor import HealthNumbers

_CHECKS = 60  # that are read; in a picture more of them are one
_SAID = 5  # answers to one prompt that are shown
_TEXTS = ("kind", "prompt", "generation")

T = TypeVar("T")
Line = Mapping[str, Any]
Checks = Mapping[int, Sequence[Line]]  # the lines of each health check, by its step, ascending


def checks_of(artifact: Artifact) -> Checks:
    """What was answered at each health check; of many checks evenly spaced ones, the first and the last among them."""
    found: dict[int, list[Line]] = {}
    for line in lines_of(artifact, "logs/samples.jsonl"):
        if "ended" in line and all(isinstance(line.get(name), str) for name in _TEXTS):
            found.setdefault(line["step"], []).append(line)
    return {step: found[step] for step in _spread(sorted(found), _CHECKS)}


def rates(checks: Checks) -> Columns:
    """By `step` the shares `harmful` and `normal` of such requests that were refused, and `ruined` of all answers.

    NaN where nothing of the kind was asked.
    """
    columns: dict[str, list[float]] = {"step": [], "harmful": [], "normal": [], "ruined": []}
    for step, lines in checks.items():
        counted = HealthNumbers.of(lines)
        harmful = [is_refusal(line["generation"]) for line in lines if line["kind"] == "adversarial"]
        columns["step"].append(step)
        columns["harmful"].append(_share(sum(harmful), len(harmful)))
        columns["normal"].append(_share(counted.refused, counted.normal))
        columns["ruined"].append(_share(counted.ruined, counted.answers))
    return columns


def changes(checks: Checks) -> Iterator[Answers]:
    """What was said to one prompt of each kind from check to check, where it was asked at the first and at the last.

    The first that came to be refused or no longer is; else the first whose answer changed.
    """
    rounds = {step: {(line["kind"], line["prompt"]): line for line in lines} for step, lines in checks.items()}
    if len(rounds) < 2:
        return
    first, *_, last = rounds.values()
    asked = [key for key in first if key in last]
    exchanges = []
    for kind in dict.fromkeys(kind for kind, _ in asked):
        key = max((key for key in asked if key[0] == kind), key=lambda key: _turn(first[key], last[key]))
        told = [(step, said[key]) for step, said in rounds.items() if key in said]
        answers = tuple(_said(step, line) for step, line in _spread(_turns(told), _SAID))
        exchanges.append(Exchange(kind_in_words(kind), key[1], answers))
    if exchanges:
        yield Answers("How answers changed while it was trained", tuple(exchanges))


def _turn(before: Line, after: Line) -> tuple[bool, bool]:
    """How much two answers differ: in whether they refuse, and at all."""
    one, other = before["generation"], after["generation"]
    return is_refusal(one) != is_refusal(other), one != other


def _turns(told: Sequence[tuple[int, Line]]) -> list[tuple[int, Line]]:
    """Those whose answer is not that of the check before."""
    texts = [None, *(line["generation"] for _, line in told)]
    return [each for each, before in zip(told, texts, strict=False) if each[1]["generation"] != before]


def _said(step: int, line: Line) -> Said:
    text = line["generation"]
    refused, empty = is_refusal(text), is_empty(text)
    looping = is_repetitive(text) and not empty
    marks = {"refused": refused, "empty": empty, "in a loop": looping, "without an end": not line["ended"]}
    when = f"after step {step:,}" if step else "before training"
    return Said(when, text, tuple(mark for mark, holds in marks.items() if holds), refused)


def _spread(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _share(some: int, of: int) -> float:
    return some / of if of else float("nan")
