"""What became of the nights before a run, told from the records of runs alone.

So it holds for a schedule of Prefect, for cron and for a timer of systemd alike. A night is a whole run of a profile
whose `runtime.every_hours` says how often it is meant to run; a run of a part of the stages is none. At what time it
is meant to, no record says: it is taken from when the last ones began. A run that was started by hand counts for the
time before it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

from engine.runs import RunRecord, records

# Of the interval: so much before its time a run may begin and yet be that night's, and so much after it without being
# late. Daylight saving moves a night by an hour, a machine that slept by some.
TOLERANCE = 0.125
RECENT = 7  # earlier runs that the usual time is taken from
_STEADY = 2  # of these have to have begun about then, for another to be called late
MOST_NAMED = 1_000  # missed times between two runs; a clock that was wrong by years would name more
_PARTS = ("only", "since", "until")


@dataclass(frozen=True)
class Missed:
    """A time at which a run was awaited and none began.

    Attributes:
        at: about when, in the time zone of the run after it.
        under_way: the id of the run that was still going by then; empty when none was known to be.
    """

    at: datetime
    under_way: str = ""


@dataclass(frozen=True)
class Nights:
    """The nights since the last completed one, the latest first.

    Attributes:
        last: the night before; None for the first.
        completed: the last one that completed; None when none did.
        spoiled: the nights since then that ended otherwise: failed, crashed, cancelled, or not known to have ended.
        missed: when no run began though one was awaited.
        late: by how many seconds this run began later than usual; 0 when it did not, or nothing is usual.
    """

    last: RunRecord | None = None
    completed: RunRecord | None = None
    spoiled: list[RunRecord] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    late: float = 0.0


@dataclass(frozen=True)
class Rhythm:
    """The times at which runs are awaited: `phase` and every `seconds` before and after it, in seconds of the epoch."""

    seconds: float
    phase: float

    @classmethod
    def of(cls, recent: Sequence[RunRecord], hours: float) -> "Rhythm":
        """The rhythm of runs every `hours`, from when these began; of two times that fit as well, the first one's.

        The phase is the one that lies nearest to all the others, which a few runs by hand or late ones do not move.
        """
        seconds = 3600.0 * hours
        began = [each.began for each in recent if math.isfinite(each.began)]
        rhythms = [cls(seconds, each) for each in began]
        return min(rhythms, key=lambda one: sum(map(one.off, began)), default=cls(seconds, 0.0))

    def off(self, began: float) -> float:
        """How many seconds lie between a moment and the nearest time of the rhythm."""
        return abs((began - self.phase + self.seconds / 2) % self.seconds - self.seconds / 2)

    def count(self, began: float) -> int:
        """The number of the time that a run belongs to: the last one before it, or one it is but a little early for."""
        return math.floor((began - self.phase) / self.seconds + TOLERANCE)

    def time(self, count: int) -> float:
        """When the time of that number is."""
        return self.phase + count * self.seconds


def every_hours(record: RunRecord) -> float:
    """How often a run's profile is meant to run, in hours; 0 when not regularly, or when the record does not say."""
    runtime = record.config.get("runtime")
    hours = runtime.get("every_hours", 0) if isinstance(runtime, Mapping) else 0
    usable = isinstance(hours, int | float) and not isinstance(hours, bool) and math.isfinite(hours)
    return float(hours) if usable and hours > 0 else 0.0


def earlier(record: RunRecord, root: Path) -> Iterator[RunRecord]:
    """The runs before this one that are its like, the latest first: whole ones of its profile below `root`.

    For a run that is meant to come regularly, only those that were meant to as well: a trial by hand under other
    settings is not the night before.
    """
    regular = every_hours(record) > 0
    for each in records(root):
        if each.id < record.id and each.origin == record.origin and _is_whole(each):
            if regular and not every_hours(each):
                continue
            yield each


def nights_before(record: RunRecord, root: Path) -> Nights:
    """What became of the nights between the last completed one and this. Nothing where no run is awaited regularly."""
    hours = every_hours(record)
    if not hours:
        return Nights()
    nights = earlier(record, root)
    recent = list(islice(nights, RECENT))
    rhythm = Rhythm.of([*recent, record], hours)
    spoiled: list[RunRecord] = []
    missed: list[Missed] = []
    completed = None
    for night in chain(recent, nights):
        missed += missed_between(night, spoiled[-1] if spoiled else record, rhythm)
        if night.state == "completed":
            completed = night
            break
        spoiled.append(night)
    return Nights(next(iter(recent), None), completed, spoiled, missed, late_by(record, recent, rhythm))


def missed_between(before: RunRecord, after: RunRecord, rhythm: Rhythm) -> list[Missed]:
    """When runs were awaited between two that follow one another, the latest first.

    No more than had room between the two, whatever the rhythm: runs at odd times by hand may look like missed ones. A
    clock that was set back since leaves no room. One that was set forward cannot be told from a machine that was off.
    """
    passed = after.began - before.began
    if not math.isfinite(passed):
        return []
    first, last = rhythm.count(before.began), rhythm.count(after.began)
    room = math.ceil(passed / rhythm.seconds - TOLERANCE) - 1
    found = min(last - first - 1, room, MOST_NAMED)
    until = before.began + (before.seconds or 0.0)
    times = (rhythm.time(last - back) for back in range(1, found + 1))
    return [Missed(_at(time, after), before.id if time <= until else "") for time in times]


def late_by(record: RunRecord, recent: Sequence[RunRecord], rhythm: Rhythm) -> float:
    """By how many seconds a run began later than usual; 0 when it did not, or when the time before it had its run.

    Args:
        recent: the runs before it, the latest first. Nothing is usual unless some of them began about the same time.
    """
    allowed = TOLERANCE * rhythm.seconds
    steady = sum(rhythm.off(each.began) <= allowed for each in recent) >= _STEADY
    if not steady or not math.isfinite(record.began) or not math.isfinite(recent[0].began):
        return 0.0
    count = rhythm.count(record.began)
    late = record.began - rhythm.time(count)
    return late if late > allowed and rhythm.count(recent[0].began) < count else 0.0


def began_at(record: RunRecord) -> datetime:
    """When a run began, in the time zone it began in; the first of all times when there is none."""
    return _at(record.began, record)


def _at(seconds: float, record: RunRecord) -> datetime:
    try:
        zone = datetime.fromisoformat(record.started_at).tzinfo or UTC
    except ValueError:
        zone = UTC
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (OverflowError, ValueError, OSError):
        return datetime.min.replace(tzinfo=UTC)


def _is_whole(record: RunRecord) -> bool:
    return not any(record.selection.get(part) for part in _PARTS)
