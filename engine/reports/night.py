"""Two sections of a run's page: what became of the nights before it, and how its data moved since the last one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StoreError
from engine.preferences.drift import THRESHOLD, Drift, changed_pairs, drifts
from engine.reports.markdown import code, duration, escape, number, share, table
from engine.store import Artifact, Store

if TYPE_CHECKING:
    from engine.nights import Missed, Nights
    from engine.runs import RunRecord

_SHOWN = 10
_STATES = {"completed": "completed", "running": "said nothing of its end", "crashed": "crashed", "failed": "failed"}


def night_sections(record: "RunRecord", root: Path) -> list[str]:
    """The sections as markdown, each with its heading; none where there is nothing to tell.

    A run that is not meant to come regularly has no nights; what it says of the data, it says only where they moved.

    Args:
        root: the root of the artifacts, below which the records of the runs are.
    """
    return [section for section in (_nights(record, root), _data(record, root)) if section]


def _nights(record: "RunRecord", root: Path) -> str:
    from engine.nights import every_hours, nights_before  # it reads records, which import the reports

    hours = every_hours(record)
    if not hours:
        return ""
    found = nights_before(record, root)
    parts = ["## The nights before", f"A run is awaited every {number(hours)} h. {_summary(found, record)}"]
    rows = [[_time(each.at), "no run began", _why(each)] for each in found.missed]
    rows += [[_began(each), _state(each), f"{code(each.id)} {_error(each)}".strip()] for each in found.spoiled]
    rows.sort(key=lambda row: row[0], reverse=True)
    if rows:
        parts.append(table(["when", "what", ""], rows[:_SHOWN]))
    if len(rows) > _SHOWN:
        parts.append(f"And {len(rows) - _SHOWN:,} before these.")
    return "\n\n".join(parts)


def _summary(found: "Nights", record: "RunRecord") -> str:
    if found.last is None:
        return "This is the first."
    told = f"The last one, {code(found.last.id)}, began {_began(found.last)} and {_state(found.last)}."
    if found.completed is None:
        told += " None has completed yet."
    elif found.completed is not found.last:
        days = (record.began - found.completed.began) / 86_400
        told += f" The last that completed is {code(found.completed.id)}, which began {_began(found.completed)}"
        told += f", {days:.1f} days before this one." if days > 0 else "."
    if found.missed:
        count = len(found.missed)
        told += f" **{'A night was' if count == 1 else f'{count:,} nights were'} missed.**"
    elif not found.spoiled:
        told += " None was missed."
    if found.late:
        told += f" **This one began {duration(found.late)} later than usual.**"
    return told


def _why(missed: "Missed") -> str:
    if missed.under_way:
        return f"{code(missed.under_way)} was still under way"
    return "machine, schedule or worker was off, or the configuration was refused"


def _state(record: "RunRecord") -> str:
    return _STATES.get(record.state) or f"was {escape(record.state)}"


def _error(record: "RunRecord") -> str:
    return escape(record.error.strip().partition("\n")[0], 200)


def _began(record: "RunRecord") -> str:
    from engine.nights import began_at

    return _time(began_at(record))


def _time(at: object) -> str:
    return escape(f"{at:%F %H:%M %z}")


def _data(record: "RunRecord", root: Path) -> str:
    tonight = _tokens(record, root)
    if tonight is None:
        return ""
    from engine.nights import earlier, every_hours

    regular = every_hours(record) > 0
    for run in earlier(record, root):
        before = _tokens(run, root) if run.state == "completed" else None
        if before is None:
            continue
        if not regular and before.digest == tonight.digest:
            return ""
        return "\n\n".join(
            [f"## The data since {'last night' if regular else 'the last run'}", *_told(before, tonight)]
        )
    return ""


def _told(before: Artifact, tonight: Artifact) -> Iterator[str]:
    counts = changed_pairs(before, tonight)
    pairs = "How many pairs are new and how many are gone is not known: the table of one of the two was removed."
    if counts is not None:
        pairs = f"New pairs: {counts[0]:,}. Gone: {counts[1]:,}."
    yield f"{pairs} Pairs then and now: {_pairs(before)} and {_pairs(tonight)}."
    found = drifts(before.metrics, tonight.metrics)
    if not found:
        yield "Shares by source and length are not known: one of the two was made before they were recorded."
        return
    yield table(["", "distance", "verdict", "by chance alone"], [_line(drift) for drift in found])
    yield (
        f"The distance is the share of pairs (of responses, by length) that would have to be others for the two to be "
        f"alike; from {share(THRESHOLD)} on, and above what chance explains, the data moved, unless new sources are "
        "all that changed. It changes no verdict."
    )
    for drift in found:
        if drift.distance > 0:
            yield table([drift.dimension, "then", "now", "change"], [_share(*entry) for entry in drift.shares[:_SHOWN]])


def _line(drift: Drift) -> list[str]:
    word = f"**{drift.word}**" if drift.moved else escape(drift.word, 120)
    return [f"by {drift.dimension}", share(drift.distance), word, f"about {share(drift.by_chance)}"]


def _share(name: str, then: float, now: float) -> list[str]:
    return [escape(name, 80), share(then), share(now), f"{100 * (now - then):+.1f} points"]


def _pairs(artifact: Artifact) -> str:
    return escape(number(artifact.metrics.get("pairs", "–")))


def _tokens(record: "RunRecord", root: Path) -> Artifact | None:
    """The artifact of tokenize that a run made or used, or its manifest alone when the files are gone."""
    for decision in record.decisions:
        if decision.stage == "tokenize" and decision.key is not None:
            there = record.artifact("tokenize")
            found = there or Store(root).pruned("tokenize", decision.key)
            return found if found is not None and _is_readable(found) else None
    return None


def _is_readable(artifact: Artifact) -> bool:
    try:
        return bool(artifact.manifest)
    except StoreError:
        return False
