"""How values are distributed, with what the picture leaves out said in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.reports.drawing import MUTED, PLAIN, drawn, format_ticks, label, legend, or_a_note, said
from engine.reports.markdown import number
from engine.reports.page import Picture
from engine.reports.pictures import Mark, marked
from engine.reports.series import Numbers, are_whole, edges, finite, is_drawable, span

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Form = Callable[[object], str]

_BESIDE: Any = {"textcoords": "offset points", "va": "top", "color": MUTED}


@dataclass(frozen=True)
class Values:
    """One distribution of `histogram`: (N,) values. What is not finite is left out."""

    name: str
    values: "Sequence[float] | np.ndarray[Any, Any]"
    colour: str = PLAIN


@or_a_note
def histogram(
    title: str,
    series: Sequence[Values],
    *,
    x: str,
    y: str = "pairs",
    marks: Sequence[Mark] = (),
    form: Form = number,
) -> Picture:
    """How often values occur, one distribution over the other; of rare ones far out it is said how many there are."""
    import numpy as np

    known = [values[np.isfinite(values)] for values in (finite(each.values) for each in series)]
    pooled = np.concatenate([np.empty(0), *known])
    told: list[str] = []
    with drawn(x, y) as (axes, finish):
        if len(pooled):
            between = edges(pooled, *span(pooled, [mark.x for mark in marks if is_drawable(mark.x)]))
            for each, values in zip(series, known, strict=True):
                heights, _ = np.histogram(values, between)
                axes.stairs(heights, between, fill=True, color=each.colour, alpha=0.45, label=label(each.name))
                told += _lie(each.name, values, form)
            told += _further_out(axes, pooled, between, form)
        told += marked(axes, marks, form)
        format_ticks(axes.yaxis, number, whole=True)
        format_ticks(axes.xaxis, form, whole=are_whole(pooled))
        legend(axes, len(series) + len(marks))
        svg = finish()
    return Picture(title, svg, "; ".join(told) or "there are no values")


def _lie(name: str, values: Numbers, form: Form) -> Iterator[str]:
    """How many there are of one distribution, and where they lie; nothing where there are none."""
    import numpy as np

    if len(values):
        yield f"{said(name)}: {number(len(values))}"
        yield f"from {form(float(values.min()))} to {form(float(values.max()))}"
        yield "5%, half and 95% lie below " + ", ".join(form(float(q)) for q in np.quantile(values, (0.05, 0.5, 0.95)))


def _further_out(axes: "Axes", values: Numbers, between: Numbers, form: Form) -> Iterator[str]:
    """Writes at each end how many values lie beyond it and how far they go, and says it."""
    for beyond, at, side in ((values[values < between[0]], 0, "left"), (values[values > between[-1]], 1, "right")):
        if len(beyond):
            reach = f"up to {form(float(beyond.max()))}" if at else f"down to {form(float(beyond.min()))}"
            many = f"{number(len(beyond))} further out"
            text = f"{many},\n{reach} →" if at else f"{many},\n← {reach}"
            axes.annotate(text, (at, 1), xycoords="axes fraction", xytext=(4 - 8 * at, -2), **_BESIDE, ha=side)
            yield f"{many} than is drawn, {reach}"
