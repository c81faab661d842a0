"""The one style in which all charts are drawn, whatever else matplotlib was told to do on this machine."""

import contextlib
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec
from unicodedata import east_asian_width

from engine.reports.markdown import plain
from engine.reports.page import Picture
from engine.reports.svg import bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# By meaning. A page in the dark puts others in their place, so each occurs in no other sense; see `to_html`.
PAPER, INK, MUTED, FAINT = "#fefefe", "#24292f", "#656d76", "#d8dee4"
CHOSEN, REJECTED = "#0969db", "#bc4c01"
BEFORE, AFTER, SERVICE, PLAIN = "#8c959e", "#8250de", "#1b7c84", "#57606b"
COLOURS = (PAPER, INK, MUTED, FAINT, CHOSEN, REJECTED, BEFORE, AFTER, SERVICE, PLAIN)

P = ParamSpec("P")

_WIDTH, _HEIGHT = 4.0, 2.35  # inches; 72 units of the SVG each
_LETTERS = 9.7  # points: 11 pixels on a phone, where the picture is 330 wide
_LABEL, _ROOM = 28, 50  # letters of a label, and of all that stand beside each other
_WORDS = 60  # characters of a name where a picture is told in words
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dpo",
    "text.parse_math": False,
    "font.size": _LETTERS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "lines.linewidth": 1.6,
}
_NOTE = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{72 * _WIDTH:g}pt" height="26pt" viewBox="0 0 {72 * _WIDTH:g} 26">'
    f'<text x="4" y="17" style="font-family: system-ui, sans-serif; font-size: {_LETTERS}px; fill: {MUTED}">'
    "This picture could not be drawn.</text></svg>"
)
_UNSPEAKABLE = re.compile("[\ufffe\uffff]")  # no XML may hold them; `plain` takes care of all the others


@contextmanager
def drawn(x: str, y: str, rows: float | None = None) -> Iterator[tuple["Axes", Callable[[], str]]]:
    """Axes in our style, as high as so many rows need, and what makes an `<svg>` of them.

    What a user has set for other drawings, by variables or files, has no effect on ours.
    """
    with _matplotlib() as matplotlib, matplotlib.rc_context(_settings(matplotlib)), warnings.catch_warnings():
        from matplotlib.figure import Figure

        warnings.simplefilter("ignore", UserWarning)  # of glyphs, which the reader's fonts have, and of odd numbers
        height = _HEIGHT if rows is None else 0.8 + 0.28 * max(rows, 1)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.set_xlabel(label(x))
        axes.set_ylabel(label(y))
        axes.tick_params(length=0)

        def finish() -> str:
            written = io.StringIO()
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
            return bare(written.getvalue())

        yield axes, finish


def or_a_note(chart: Callable[Concatenate[str, P], Picture]) -> Callable[Concatenate[str, P], Picture]:
    """A chart that never fails: in place of one that cannot be drawn stands why, and all that is around it is told."""

    @wraps(chart)
    def either(title: str, /, *args: P.args, **kwargs: P.kwargs) -> Picture:
        try:
            return chart(title, *args, **kwargs)
        except Exception as trouble:  # a drawing rests on fonts, files and settings of the machine
            why = f"{type(trouble).__name__}: {plain(str(trouble), 160)}"
            return Picture(title, _NOTE, f"this picture could not be drawn ({why})")

    return either


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """The library, whose own words are kept from the terminal, and which a notebook's backend cannot keep from us."""
    logger = logging.getLogger("matplotlib")
    level, backend = logger.level, None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    logger.setLevel(logging.CRITICAL)
    try:
        try:
            import matplotlib
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        if backend is not None:
            with contextlib.suppress(Exception):  # what the import would have done, where there is such a backend
                matplotlib.rcParams["backend"] = backend
        yield matplotlib
    finally:
        logger.setLevel(level)


def _settings(matplotlib: Any) -> dict[str, Any]:
    shipped: dict[str, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    shipped.update(_STYLE)
    return shipped


def format_ticks(axis: "Axis", form: Callable[[object], str], *, whole: bool = False) -> None:
    """A few ticks, of `whole` numbers if said so, each written by `form`; of a round share `50%`, not `50.0%`.

    Below the axes there are as many as have room, so it comes after all that is drawn and after `name_rows`.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def written(value: float, place: int | None = None) -> str:
        return re.sub(r"\.0%$", "%", form(float(f"{value:.6g}")))

    axis.set_major_formatter(FuncFormatter(written))
    room = _room_below(axis.axes) if axis is axis.axes.xaxis else math.inf
    for most in (6, 5, 4, 3, 2):
        locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)
        axis.set_major_locator(locator)
        if sum(_width(written(value)) + 2 for value in locator()) <= room:
            return


def _room_below(axes: "Axes") -> int:
    """Letters for which there is room beside each other below the axes, with what stands on their left as it is."""
    return _ROOM - max((_width(each.get_text()) for each in axes.get_yticklabels()), default=0)


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Rows one below the other, the first on top, each with its name beside it."""
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def legend(axes: "Axes", count: int, least: int = 2) -> None:
    """Names above the axes, as many in a row as find room, where there is more than one thing to be told apart.

    What is wider than the axes begins at the edge of the picture.
    """
    names = axes.get_legend_handles_labels()[1]
    if count >= least and names:
        columns = min(max(_ROOM // (max(map(_width, names)) + 5), 1), 3)
        from matplotlib.transforms import blended_transform_factory

        wide = sum(sorted(_width(name) + 5 for name in names)[-columns:]) > _room_below(axes)
        place = blended_transform_factory(axes.figure.transFigure, axes.transAxes) if wide else axes.transAxes
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            bbox_transform=place,
            ncols=columns,
            borderaxespad=0.2,
            columnspacing=1.2,
        )


def label(text: str, most: int = _LABEL) -> str:
    """A label: short, cut in its middle since names often differ in their ends, and never one that matplotlib leaves
    out for the underscore it begins with.
    """
    shown = _UNSPEAKABLE.sub("·", plain(text))
    if _width(shown) > most:
        shown = f"{_as_wide(shown, most // 2)}…{_as_wide(shown[::-1], most // 2 - 1)[::-1]}"
    return f"\u200b{shown}" if shown.startswith("_") else shown


def said(name: str) -> str:
    """A name where a picture is told in words."""
    return plain(name, _WORDS)


def _width(text: str) -> int:
    """In letters; a Chinese character is as wide as two."""
    return sum(1 + (east_asian_width(sign) in "WF") for sign in text)


def _as_wide(text: str, most: int) -> str:
    """The beginning of a text, up to that width."""
    return next(text[:end] for end in range(most, -1, -1) if _width(text[:end]) <= most)
