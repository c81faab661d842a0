"""Where a run's time went: into the stages it made, and into the one it did not finish."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.reports.markdown import duration, escape, share
from engine.reports.stages import ORDER
from engine.selection import Selection
from engine.stage import Decision

if TYPE_CHECKING:
    from engine.runs import RunRecord

_MADE = ("run", "resume")


@dataclass(frozen=True)
class Unfinished:
    """The stage that a run was at when it ended, or is at.

    Attributes:
        seconds: that went into it, with what lay between the stages before it; None where nobody knows.
    """

    stage: str
    seconds: float | None


def unfinished(record: "RunRecord") -> Unfinished | None:
    """The stage, of those it was about, after the last it was done with; None where there is none, or it completed."""
    last = max((ORDER.index(each.stage) for each in record.decisions if each.stage in ORDER), default=-1)
    at = next((name for name in _selected(record) if ORDER.index(name) > last), None)
    if record.state == "completed" or at is None:
        return None
    rest = None if record.seconds is None else max(0.0, record.seconds - sum(map(_seconds, _made(record))))
    return Unfinished(at, rest)


def _selected(record: "RunRecord") -> Sequence[str]:
    """The stages that the run was about; all of them where its record is of another version."""
    try:
        return Selection(**record.selection).names(ORDER)
    except (TypeError, ConfigError):
        return ORDER


def where_the_time_went(record: "RunRecord") -> str:
    """The stages that took the most of it, and what reuse saved; in markdown."""
    told = [*_at_work(record), *_longest(record), *_reuse(record)]
    return " ".join(told) or "No stage was finished."


def _at_work(record: "RunRecord") -> list[str]:
    """The stage that was not finished, which has no time of its own."""
    broken = unfinished(record)
    if broken is None:
        return []
    if record.state == "running":
        return [f"It is at **{escape(broken.stage)}**, or was killed there."]
    if broken.seconds is None:
        return [f"It ended in **{escape(broken.stage)}**; how long that took is not known."]
    whole = f" of {duration(record.seconds)}" if _made(record) else ""
    return [f"**{escape(broken.stage)}**, which it did not finish: {duration(broken.seconds)}{whole}."]


def _longest(record: "RunRecord") -> list[str]:
    made = sorted(_made(record), key=_seconds, reverse=True)[:2]
    if not made:
        return []
    if record.state != "completed":
        return [f"Of those it finished, {_named(made[0])} took the longest."]
    total = record.seconds or sum(map(_seconds, _made(record)))
    part = f" ({share(min(1.0, _seconds(made[0]) / total))})" if total > 0 else ""
    told = [f"**{escape(made[0].stage)}**: {duration(made[0].seconds)} of {duration(total)}{part}."]
    return told + [f"Next came {_named(each)}." for each in made[1:] if _seconds(each)]


def _reuse(record: "RunRecord") -> list[str]:
    reused = [each for each in record.decisions if each.action == "reuse"]
    if not reused:
        return []
    ended = "" if record.state == "completed" else " that it finished"
    many = f"Every stage{ended} was" if not _made(record) else f"{len(reused)} of {len(record.decisions)} stages were"
    return [f"{many} reused, which saved {duration(sum(map(_seconds, reused)))}."]


def _named(decision: Decision) -> str:
    return f"{escape(decision.stage)} with {duration(decision.seconds)}"


def _made(record: "RunRecord") -> list[Decision]:
    return [each for each in record.decisions if each.action in _MADE]


def _seconds(decision: Decision) -> float:
    return decision.seconds or 0.0
