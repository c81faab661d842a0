"""Charts: curves, intervals, bars and reliability, each with what it shows in words. `histograms` has one more."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.reports.drawing import (
    AFTER,
    INK,
    MUTED,
    PLAIN,
    drawn,
    format_ticks,
    label,
    legend,
    name_rows,
    or_a_note,
    said,
)
from engine.reports.markdown import number, plain, share
from engine.reports.page import Picture
from engine.reports.series import extremes, few, finite, is_drawable, smoothed

_BESIDE = 20  # letters beside a mark, as many as the axes are high
_FAR = {"linear": 20, "log": 1e4}  # times the highest value: a level further off is told and not drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """One line of `curves`: y over x, both (N,). What is not finite is left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = PLAIN


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a word beside it."""

    x: float
    name: str
    colour: str = INK


@dataclass(frozen=True)
class Whisker:
    """A value with the ends of its interval, where it has one.

    Attributes:
        of: whose value it is, where several stand beside one name; a legend names them.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = PLAIN
    of: str = ""


@dataclass(frozen=True)
class Bar:
    """One row of `bars`: a value for each series; None where there is none."""

    name: str
    values: Sequence[float | None]


@or_a_note
def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    x: str = "step",
    y: str = "",
    smooth: bool = True,
    log: bool = False,
    within: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
    levels: Sequence[tuple[str, float]] = (),
    form: Callable[[object], str] = number,
) -> Picture:
    """Lines over steps: smoothed, with what was measured faintly behind it.

    Args:
        smooth: False for what does not scatter, such as a learning rate.
        log: for what spans decades; what is not above zero is left out.
        within: the ends of what `y` can be, which are shown whole.
        levels: horizontal lines that `y` is held against, each with a word.
        form: how a value of `y` is written.
    """
    told: list[str] = []
    with drawn(x, y) as (axes, finish):
        for line in lines:
            told += _line(axes, line, x, form, smooth=smooth, log=log)
        told += _held_against(axes, marks, levels, x, form) if told else []
        if within:
            room = 0.04 * (within[1] - within[0])
            axes.set_ylim(within[0] - room, within[1] + room)
        format_ticks(axes.yaxis, form)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: form(float(value)))
            axes.minorticks_off()
        format_ticks(axes.xaxis, number)
        legend(axes, len(lines) + len(levels))
        svg = finish()
    return Picture(title, svg, "; ".join(told) or "nothing was recorded")


@or_a_note
def whiskers(
    title: str,
    rows: Sequence[Whisker],
    *,
    x: str = "",
    marks: Sequence[Mark] = (),
    form: Callable[[object], str] = number,
) -> Picture:
    """Values with their intervals, a row for each name, the first on top."""
    told = []
    keys = [(row.name, -1 if row.of else at) for at, row in enumerate(rows)]  # names alone may be the same
    names, owners = list(dict.fromkeys(keys)), list(dict.fromkeys(row.of for row in rows))
    apart = 0.36 if len(owners) > 1 else 0.0
    with drawn(x, "", rows=len(names) * (1 + apart)) as (axes, finish):
        for key, row in zip(keys, rows, strict=True):
            if is_drawable(row.value):
                place = names.index(key) + apart * (owners.index(row.of) - (len(owners) - 1) / 2)
                told.append(_whisker(axes, row, place, form))
        for owner in filter(None, owners):
            colour = next(row.colour for row in rows if row.of == owner)
            axes.plot([], [], color=colour, marker="o", markersize=5, label=label(owner))
        told += marked(axes, marks, form)
        name_rows(axes, [name for name, _ in names])
        format_ticks(axes.xaxis, form)
        legend(axes, len(marks) + len(owners) - 1, least=1)
        svg = finish()
    return Picture(title, svg, "; ".join(told) or "there are no values")


@or_a_note
def bars(
    title: str,
    rows: Sequence[Bar],
    series: Sequence[tuple[str, str]],
    *,
    x: str = "",
    form: Callable[[object], str] = number,
) -> Picture:
    """Horizontal bars with their values behind them, the first row on top.

    Args:
        series: (name, colour) of each value of a row.
    """
    many = max(len(series), 1)
    with drawn(x, "", rows=len(rows) * (1 if many == 1 else 0.55 * many)) as (axes, finish):
        for at, (name, colour) in enumerate(series):
            places = [place + 0.8 * (at + 0.5) / many - 0.4 for place in range(len(rows))]
            lengths = [value if is_drawable(value := row.values[at]) else 0.0 for row in rows]
            shown = axes.barh(places, lengths, 0.72 / many, color=colour, label=label(name), alpha=0.85)
            labels = [form(row.values[at]) if is_drawable(row.values[at]) else "" for row in rows]
            axes.bar_label(shown, labels, padding=3, color=MUTED)
        name_rows(axes, [row.name for row in rows])
        axes.margins(x=0.16)
        axes.grid(visible=False)
        axes.xaxis.set_visible(bool(x))
        format_ticks(axes.xaxis, form)
        legend(axes, many)
        svg = finish()
    told = (_row_in_words(row, series, form) for row in rows)
    return Picture(title, svg, "; ".join(told) or "there are no values")


@or_a_note
def reliability(title: str, bins: Sequence[tuple[float, float, int]], *, x: str, y: str) -> Picture:
    """How sure against how often right: (confidence, accuracy, pairs) of each bin; of more pairs, the dot is larger."""
    known = [(sure, right, pairs) for sure, right, pairs in bins if is_drawable(sure) and is_drawable(right)]
    most = max([pairs for *_, pairs in known], default=1) or 1
    with drawn(x, y) as (axes, finish):
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="as sure as it should be")
        for sure, right, pairs in known:
            axes.plot([sure], [right], color=AFTER, marker="o", markersize=3 + 7 * math.sqrt(pairs / most), alpha=0.8)
        axes.plot([sure for sure, *_ in known], [right for _, right, _ in known], color=AFTER, linewidth=1)
        format_ticks(axes.yaxis, share)
        format_ticks(axes.xaxis, share)
        legend(axes, 2)
        svg = finish()
    told = [f"sure {share(sure)}, right {share(right)}, {number(pairs)} pairs" for sure, right, pairs in known]
    return Picture(title, svg, "; ".join(told) or "there are no pairs")


def _line(
    axes: "Axes", line: Curve, x: str, form: Callable[[object], str], *, smooth: bool, log: bool
) -> Iterator[str]:
    """Draws one line of `curves` and says where it began, ended and lay, as it was measured; nothing without values."""
    import numpy as np

    at, values = finite(line.x), finite(line.y)
    kept = np.isfinite(at) & np.isfinite(values) & ((values > 0) | (not log))
    at, values = at[kept], values[kept]
    if not len(values):
        return
    shown, some = smoothed(values) if smooth else values, few(len(values))
    if smooth:
        raw = extremes(values)
        axes.plot(at[raw], values[raw], color=line.colour, alpha=0.28, linewidth=0.8)
    axes.plot(at[some], shown[some], color=line.colour, label=label(line.name), marker="" if at[1:].size else "o")
    ends = f"{form(float(values[0]))} at {x} {number(float(at[0]))}"
    ends += f", {form(float(values[-1]))} at {x} {number(float(at[-1]))}" if len(at) > 1 else ""
    yield f"{said(line.name)}: {ends}, between {form(float(values.min()))} and {form(float(values.max()))}"


def _held_against(
    axes: "Axes",
    marks: Sequence[Mark],
    levels: Sequence[tuple[str, float]],
    x: str,
    form: Callable[[object], str],
) -> list[str]:
    """Draws what the lines of `curves` are held against, and says it. Marks at one place share a word beside them."""
    _, most = axes.get_ylim()
    for name, value in levels:
        if not is_drawable(value) or abs(value) > _FAR[axes.get_yscale()] * max(abs(most), 1e-9):
            continue  # it would press all the rest flat
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=label(name))
    for at in dict.fromkeys(mark.x for mark in marks):
        names = dict.fromkeys(mark.name for mark in marks if mark.x == at)
        colour = next(mark.colour for mark in marks if mark.x == at)
        axes.axvline(at, color=colour, linewidth=1, linestyle=(0, (4, 2)))
        on_the_left = at > sum(axes.get_xlim()) / 2  # there is room beside it
        axes.annotate(
            label(", ".join(names), _BESIDE),
            (at, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-3 if on_the_left else 3, -2),
            textcoords="offset points",
            rotation=90,
            ha="right" if on_the_left else "left",
            va="top",
            color=colour,
            in_layout=False,
        )
    told = [f"{plain(mark.name)}: {x} {number(mark.x)}" for mark in marks]
    return told + [f"{plain(name)}: {form(value)}" for name, value in levels]


def _whisker(axes: "Axes", row: Whisker, place: float, form: Callable[[object], str]) -> str:
    """Draws a value with its interval, and says them."""
    words = f"{said(row.name)}{f', {said(row.of)}' if row.of else ''}: {form(row.value)}"
    if is_drawable(row.low) and is_drawable(row.high):
        axes.plot([row.low, row.high], [place, place], color=row.colour, linewidth=1.6, solid_capstyle="butt")
        words += f" ({form(row.low)} to {form(row.high)})"
    axes.plot([row.value], [place], color=row.colour, marker="o", markersize=5, linestyle="")
    return words


def marked(axes: "Axes", marks: Sequence[Mark], form: Callable[[object], str]) -> list[str]:
    """Draws the marks and says where they are; `form` writes the place."""
    known = [mark for mark in marks if is_drawable(mark.x)]
    for mark in known:
        axes.axvline(mark.x, color=mark.colour, linewidth=1, linestyle=(0, (4, 2)), label=label(mark.name))
    return [f"{said(mark.name)}: {form(mark.x)}" for mark in known]


def _row_in_words(row: Bar, series: Sequence[tuple[str, str]], form: Callable[[object], str]) -> str:
    values = [form(value) if is_drawable(value) else "–" for value in row.values]
    if len(series) > 1:
        values = [f"{said(name)} {value}" for (name, _), value in zip(series, values, strict=False)]
    return f"{said(row.name)}: {', '.join(values)}"
