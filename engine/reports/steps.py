"""The logs of a training, read back, and the pictures of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import StoreError
from engine.reports.drawing import AFTER, CHOSEN, PLAIN, REJECTED
from engine.reports.markdown import is_number, number, share
from engine.reports.measures import Form
from engine.reports.page import Picture
from engine.reports.pictures import Curve, Mark, curves
from engine.store import Artifact
from engine.training.monitor import (
    DISPLACEMENT,
    EMPTY,
    GRADIENT,
    LOOPING,
    NOT_FINITE,
    OVER_REFUSAL,
    RUINED,
    UNENDING,
)

Columns = Mapping[str, list[float]]

STOPPED, KEPT = "stopped", "kept"  # marks that every picture of the policy shows
_DECADES = 100.0  # times its smallest value, from which on a logarithmic scale shows more
_STEPS = range(2**53)  # a float holds every whole number in it


@dataclass(frozen=True)
class Chart:
    """A picture of some columns over steps.

    Attributes:
        title: what it shows, and what to look for.
        lines: (column, name, colour) of each.
        decades: whether its scale is logarithmic where the values are far apart.
        within: the ends of what the values can be.
        from_zero: whether zero is shown, for what is worth its height.
        unit: what values are divided by.
        level: a horizontal line, with its word.
        signs: of the monitor's, those that show in these curves.
    """

    title: str
    lines: tuple[tuple[str, str, str], ...]
    y: str = ""
    form: Form = number
    smooth: bool = True
    decades: bool = False
    within: tuple[float, float] | None = None
    from_zero: bool = False
    unit: float = 1.0
    level: tuple[str, float] | None = None
    signs: tuple[str, ...] = ()


def _sides(column: str) -> tuple[tuple[str, str, str], ...]:
    return (f"{column}/chosen", "chosen", CHOSEN), (f"{column}/rejected", "rejected", REJECTED)


def _answers(title: str, column: str, *signs: str) -> Chart:
    lines = ((column, "answers", AFTER),)
    return Chart(title, lines, y="of the answers", form=share, smooth=False, within=(0, 1), signs=signs)


LOSS = Chart("Loss: should fall", (("loss", "loss", AFTER),), signs=(NOT_FINITE,))
PREFERENCES = (
    Chart("Margin: should rise", (("rewards/margins", "margin", AFTER),), y="reward", level=("no preference", 0.0)),
    Chart("Rewards: chosen above rejected", _sides("rewards"), y="reward", signs=(DISPLACEMENT,)),
    LOSS,
    Chart(
        "Pairs put right: well above half",
        (("rewards/accuracies", "put right", AFTER),),
        y="of the pairs",
        form=share,
        within=(0, 1),
        level=("by chance", 0.5),
    ),
)
ANSWERS = (
    _answers("Harmful requests refused: should rise", "harmful"),
    _answers("Normal requests refused: should stay rare", "normal", OVER_REFUSAL),
    _answers("Ruined answers: should stay rare", "ruined", EMPTY, LOOPING, UNENDING, RUINED),
)
DRIFT = Chart(
    "Change of log-probability: chosen should not fall",
    _sides("log_ratio_per_token"),
    y="nats a token",
    level=("as the reference", 0.0),
    signs=(DISPLACEMENT,),
)
_NORM = Chart(
    "Gradient's norm: no jumps that last",
    (("grad_norm", "norm", PLAIN),),
    decades=True,
    signs=(GRADIENT, NOT_FINITE),
)
MACHINE = (
    Chart("Learning rate: as it was planned", (("learning_rate", "learning rate", PLAIN),), smooth=False),
    Chart("Tokens a second: should be steady", (("tokens_per_second", "tokens a second", PLAIN),), from_zero=True),
    Chart(
        "Most memory so far: should level off",
        (("memory_bytes", "memory", PLAIN),),
        y="GiB",
        smooth=False,
        from_zero=True,
        unit=2.0**30,
    ),
)


def norm_clipped(above: object) -> Chart:
    """The chart of the gradient's norm; where it is known above which norm a gradient is clipped, with that."""
    bound = as_float(above)
    return replace(_NORM, level=("clipped above", bound)) if math.isfinite(bound) else _NORM


def lines_of(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole and say their `step`, in their order; none where the log is gone."""
    try:
        with artifact.file(name).open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):  # half of one, or other bytes
                    continue
                if isinstance(line, dict) and type(line.get("step")) is int and line["step"] in _STEPS:
                    yield line
    except (StoreError, OSError):
        return


def steps_of(artifact: Artifact) -> Columns:
    """The numbers of a training's steps by name, `step` among them, ascending; empty where nothing is left of them.

    All lists are equally long: what a step lacks is NaN. From `logs/steps.jsonl` and, under `seconds`, `tokens`,
    `tokens_per_second` and `memory_bytes`, `logs/resources.jsonl`.
    """
    lines = {line["step"]: line for line in lines_of(artifact, "logs/steps.jsonl")}
    for line in lines_of(artifact, "logs/resources.jsonl"):
        if line["step"] in lines:
            lines[line["step"]] = line | lines[line["step"]]
    names = dict.fromkeys(name for line in lines.values() for name, value in line.items() if is_number(value))
    return {name: [as_float(lines[step].get(name)) for step in sorted(lines)] for name in names}


def pictures_of(charts: Sequence[Chart], columns: Columns, marks: Sequence[Mark] = ()) -> Iterator[Picture]:
    """A picture of each chart that there is a number for.

    Args:
        columns: `step` and others, equally long.
        marks: of them a picture gets the end of the training and those of its chart's signs.
    """
    for chart in charts:
        lines = [
            Curve(name, columns["step"], [value / chart.unit for value in columns[column]], colour)
            for column, name, colour in chart.lines
            if any(map(math.isfinite, columns.get(column, ())))
        ]
        if lines:
            yield _picture(chart, lines, [mark for mark in marks if mark.name in (STOPPED, KEPT, *chart.signs)])


def _picture(chart: Chart, lines: Sequence[Curve], marks: Sequence[Mark]) -> Picture:
    highest = max(value for line in lines for value in line.y if math.isfinite(value))
    return curves(
        chart.title,
        lines,
        y=chart.y,
        smooth=chart.smooth,
        log=chart.decades and _spans_decades(lines),
        within=(0.0, highest) if chart.from_zero and highest > 0 else chart.within,
        marks=marks,
        levels=[chart.level] if chart.level else [],
        form=chart.form,
    )


def _spans_decades(lines: Sequence[Curve]) -> bool:
    above = [value for line in lines for value in line.y if value > 0 and math.isfinite(value)]
    return bool(above) and max(above) > _DECADES * min(above)


def as_float(value: object) -> float:
    """`value` as a float; NaN where it is no number or too large for one."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:
        return math.nan
