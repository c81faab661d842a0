"""What of a series of numbers is drawn: a smoothed line, some of its points, the bins of a histogram."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

Numbers = np.ndarray[Any, Any]

_POINTS = 120  # more of them on a line only make the file larger
_BINS = 36
_TAIL = 0.005  # of a histogram's values at each end, which are left out where they lie further from the others
_NEAR = 0.6  # than so many times the width of those
_WIDEST = 1e100  # axes that go further have no ticks


def is_drawable(value: object) -> TypeGuard[float]:
    """Whether an axis can show a value: a number that is finite, and not beyond all measure."""
    return isinstance(value, int | float | np.number) and abs(float(value)) < _WIDEST  # False for nan


def finite(values: Any) -> Numbers:
    """(N,) float64 with nan for what `is_drawable` is not said of."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(numbers) < _WIDEST, numbers, np.nan)  # a comparison with nan is False


def smoothed(values: Numbers) -> Numbers:
    """An exponential mean over about a thirtieth of the values, which starts at the first without a bias towards 0."""
    keep = 1 - 1 / max(1.0, len(values) / 30)
    smooth, weight, total = np.empty_like(values), 0.0, 0.0
    for place, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        smooth[place] = total / weight
    return smooth


def few(count: int) -> Numbers:
    """Places of so many values that are drawn: evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype(int))


def extremes(values: Numbers) -> Numbers:
    """Places of the least and the largest value of each of some chunks, in order: no jump is left out."""
    chunks = np.array_split(np.arange(len(values)), max(1, min(len(values), _POINTS // 2)))
    ends = [part[place] for part in chunks if len(part) for place in (values[part].argmin(), values[part].argmax())]
    return np.unique(np.array(ends, dtype=int))


def span(values: Numbers, shown: Sequence[float] = ()) -> tuple[float, float]:
    """From where to where a histogram of the values goes, at least one of them.

    Where the rare ends lie far out, they are left outside: all others would stand in a few bins.

    Args:
        shown: places that the axis reaches for other reasons.
    """
    least, most = float(values.min()), float(values.max())
    low = float(np.quantile(values, _TAIL, method="higher"))  # values that there are: nothing lies between the
    high = float(np.quantile(values, 1 - _TAIL, method="lower"))  # bulk and one that is far out
    if not high > low:
        return least, most
    low, high = min([low, *shown]), max([high, *shown])
    room = _NEAR * (high - low)
    return (least if least >= low - room else low), (most if most <= high + room else high)


def are_whole(values: Numbers) -> bool:
    """Whether all of them are whole numbers."""
    return bool(np.all(values == np.round(values)))


def edges(values: Numbers, low: float, high: float) -> Numbers:
    """Edges of bins; whole numbers get bins of a whole width, or some would hold more of them than others.

    The last of these ends with the highest value, which may be a limit that many reach.
    """
    if not high > low:
        room = max(0.5, 1e-6 * abs(low))
        return np.array([low - room, high + room])
    if are_whole(values) and high - low < 1e12:
        width = max(1, math.ceil((high - low + 1) / _BINS))
        end = math.ceil(high) + 0.5
        return end - width * np.arange(math.ceil((end - low) / width), -1, -1)
    return np.linspace(low, high, _BINS + 1)
