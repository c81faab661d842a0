"""How far a stage is, in one line of a terminal: a bar, the time it took, its numbers, and the time it still takes."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from engine.pace import Pace
from engine.reports.markdown import duration, number, plain

SEPARATOR = " · "
_LEFT = " left"
_PACE_SECONDS = 60.0  # of work that tell how much time is left: what was slow once counts no longer after that
_SAMPLE_SECONDS = 0.5  # the least time between two looks at how fast a stage goes
_SURE_SECONDS = 2.0  # of work without which nobody can tell how much time is left
_WIDE, _BAR, _SHORT_BAR = 110, 24, 10  # columns of a terminal that has room, and of the bar there and elsewhere
_BESIDES = 26  # columns of all that stands on a line besides its bar and its text


class Work:
    """What one stage told of its progress.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = self.total = 0
        self._clock, self._pace = clock, Pace(_PACE_SECONDS, clock)
        self._numbers: Mapping[str, float] = {}
        self._widths: dict[str, int] = {}
        self._looked: tuple[float, int] | None = None  # a resumed stage begins behind what is done already
        self._told = 0.0

    def reached(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Takes in that `done` of `total` units are done; a total of 0 is not known."""
        now = self._told = self._clock()
        self.done, self.total, self._numbers = done, total, numbers
        if self._looked is None:
            self._looked = now, done
        before, units = self._looked
        if now - before >= _SAMPLE_SECONDS and done > units:
            self._pace.add(done - units, now - before)
            self._looked = now, done

    @property
    def left(self) -> float | None:
        """Seconds that it still takes at its pace of the last minute; None while that cannot be told."""
        rate = self._pace.rate
        if rate is None or self._pace.seconds < _SURE_SECONDS or not 0 <= self.done < self.total:
            return None
        return max((self.total - self.done) / rate - (self._clock() - self._told), 0.0)

    def parts(self) -> list[str]:
        """Where it is, its numbers, and the time left, as far as they are known; none gets narrower again."""
        if self._looked is None:
            return []
        parts = [f"{self.done:,} of {self.total:,}" if self.total > 0 else f"{self.done:,}"]
        parts += [self._steady(name, numbered(name, value)) for name, value in self._numbers.items()]
        left = self.left
        return parts if left is None else [*parts, time_left(left)]

    def _steady(self, name: str, text: str) -> str:
        self._widths[name] = max(self._widths.get(name, 0), len(text))
        return text.ljust(self._widths[name])


def numbered(name: str, value: float) -> str:
    """A number by its name: `loss 0.612`; a rate, whose name ends in `/s`, stands behind it: `12,345 tokens/s`."""
    return plain(f"{number(value)} {name}" if name.endswith("/s") else f"{name} {number(value)}")


def time_left(seconds: float) -> str:
    """`20 s left`, in whole seconds, or `1 min 20 s left`."""
    return f"{math.ceil(seconds)} s{_LEFT}" if seconds <= 59 else f"{duration(seconds)}{_LEFT}"


def fitted(parts: Sequence[str], room: int) -> str:
    """The parts on one line of at most `room` columns, as many as fit, in their order.

    The time left, where it is the last of them, is the last to go; the first, since the bar shows it too, goes first,
    and then the numbers from the last on.
    """
    kept: set[int] = set()
    places = deque(range(len(parts)))
    places.rotate(-1)  # the first comes last
    if parts and parts[-1].endswith(_LEFT) and len(parts) > 1:
        places.remove(len(parts) - 1)
        places.appendleft(len(parts) - 1)
    for at in places:
        line = SEPARATOR.join(parts[place] for place in sorted(kept | {at}))
        if cell_len(line) > room:
            break
        kept.add(at)
    return SEPARATOR.join(parts[at] for at in sorted(kept))


class _Told(ProgressColumn):
    """The parts of a task, a callable in its field `parts`, as far as the line has room."""

    def __init__(self, console: Console, room: Callable[[], int]) -> None:
        super().__init__()
        self._console, self._room = console, room

    def render(self, task: Task) -> Text:
        return Text(fitted(task.fields["parts"](), self._room()), no_wrap=True, overflow="crop")


class _Bar(BarColumn):
    """As wide as the terminal allows, now."""

    def __init__(self, width: Callable[[], int]) -> None:
        super().__init__()
        self._width = width

    def render(self, task: Task):  # type: ignore[no-untyped-def]  # rich's own bar
        self.bar_width = self._width()
        return super().render(task)


def bars(console: Console, *, disable: bool = False) -> Progress:
    """Live lines for stages, gone at the end. A task's description is its stage; its field `parts` gives its text."""

    def width() -> int:
        return _BAR if console.width >= _WIDE else _SHORT_BAR

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<9}", markup=False),
        _Bar(width),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        _Told(console, lambda: console.width - width() - _BESIDES),
    )
    return Progress(*columns, console=console, transient=True, disable=disable)
