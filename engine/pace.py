"""How fast work goes now, and how far a stage is whose work has several parts."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

_FEWEST = 4  # of the latest pieces of work count however long ago they were: slow ones differ among each other

Part = Callable[[int, int], None]  # told how much of a part is done, and how many tokens went through since it was last


class Pace:
    """Units a second over the last seconds of work. A resumed stage has a pace from what it does itself.

    Args:
        seconds: work that lies further back than so many seconds of work does not count.
        clock: seconds, from any beginning.
    """

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._clock = seconds, clock
        self._pieces: deque[tuple[float, float]] = deque()  # units and seconds, the oldest first
        self._units = self._seconds = 0.0
        self._last = clock()

    def add(self, units: float, seconds: float | None = None) -> None:
        """Counts a piece of work in.

        Args:
            seconds: how long it took; None for all the time since the piece before, or since the beginning.
        """
        now = self._clock()
        self._count(units, now - self._last if seconds is None else seconds)
        self._last = now
        while len(self._pieces) > _FEWEST and self._seconds - self._pieces[0][1] >= self._window:
            units, seconds = self._pieces.popleft()
            self._units, self._seconds = self._units - units, self._seconds - seconds

    def begin(self) -> None:
        """What came before the first piece of work does not count."""
        self._last = self._clock()

    def _count(self, units: float, seconds: float) -> None:
        self._pieces.append((units, seconds))
        self._units, self._seconds = self._units + units, self._seconds + seconds

    @property
    def seconds(self) -> float:
        """How long the work took that counts."""
        return self._seconds

    @property
    def rate(self) -> float | None:
        """Units a second; None when nothing was done yet."""
        return self._units / self._seconds if self._units > 0 and self._seconds > 0 else None

    def tokens(self, count: int, seconds: float | None = None) -> dict[str, int]:
        """Counts tokens in; returns the pace as progress shows it, in whole tokens, and nothing while it is unknown."""
        self.add(count, seconds)
        rate = self.rate
        return {} if rate is None else {"tokens/s": round(rate)}


def with_tokens(told: Part, sizes: Sequence[int], *, before: int = 0) -> Callable[[int], None]:
    """What is told how many items of a part are done, and passes it on with the tokens of those that are new.

    Args:
        sizes: tokens of each item, in the order in which they are done.
        before: items of the part that were done before them.
    """
    reached = [0, *accumulate(sizes)]
    last = 0

    def tell(done: int) -> None:
        nonlocal last
        told(before + done, reached[done] - reached[last])
        last = done

    return tell


class Tells(Protocol):
    """What is told of a stage's progress, as `Context.progress` is."""

    def __call__(self, done: int, total: int, **numbers: float) -> None: ...


class Course:
    """The progress of a stage over all parts of its work, so that it goes from 0 to its total and never back.

    A part that has a name shows under it how many of its own units are done, beside its tokens a second.

    Args:
        total: units of all parts together: pairs to score, prompts to answer.
    """

    def __init__(self, tell: Tells, total: int) -> None:
        self._tell, self._total = tell, total
        self._before = 0

    def part(self, size: int, name: str = "") -> Part:
        """The next part of the work, of `size` units; what the part before lacked of its units counts as done.

        Its clock runs from now on, or from where it is told that none of it is done yet.
        """
        before, pace = self._before, Pace()
        self._before += size

        def told(done: int, tokens: int) -> None:
            numbers: dict[str, float] = {name: done} if name else {}
            if done:
                numbers |= pace.tokens(tokens)
            else:
                pace.begin()
            self._tell(before + done, self._total, **numbers)

        return told
