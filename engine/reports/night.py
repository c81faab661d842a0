"""What became of the nights before a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.reports.markdown import code, duration, escape, number, table
from engine.reports.recorded import began

if TYPE_CHECKING:
    from engine.nights import Missed, Nights
    from engine.runs import RunRecord

_SHOWN = 10
_STATES = {"completed": "completed", "running": "said nothing of its end", "crashed": "crashed", "failed": "failed"}


def night_sections(record: "RunRecord", root: Path) -> list[str]:
    """The section as markdown, with its heading; none for a run that is not meant to come regularly.

    Args:
        root: the root of the artifacts, below which the records of the runs are.
    """
    from engine.nights import every_hours, nights_before  # it reads records, which import the reports

    hours = every_hours(record)
    if not hours:
        return []
    found = nights_before(record, root)
    parts = ["## The nights before", f"A run is awaited every {number(hours)} h. {_summary(found, record)}"]
    rows = [[_time(each.at), "no run began", _why(each)] for each in found.missed]
    rows += [[_began(each), _state(each), f"{code(each.id)} {_error(each)}".strip()] for each in found.spoiled]
    rows.sort(key=lambda row: row[0], reverse=True)
    if rows:
        parts.append(table(["when", "what", ""], rows[:_SHOWN]))
    if len(rows) > _SHOWN:
        parts.append(f"And {len(rows) - _SHOWN:,} before these.")
    return ["\n\n".join(parts)]


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
    return escape(began(record))


def _time(at: object) -> str:
    return escape(f"{at:%F %H:%M %z}")
