"""Rows of another kind than those that a source's format was told by, as a file of two parts has them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.preferences.formats import Format
from engine.preferences.ledger import shown
from engine.preferences.mismatch import listed
from engine.preferences.reading import Record

_KINDS = 100  # of rows that are told apart
_TOLD = 5


@dataclass
class OtherRows:
    """Rows of the same columns that the format does not mean: how many, the first, and what is to be said of them."""

    row: int
    columns: str
    problem: str
    count: int = 0


class Later:
    """Watches for them as rows go by. Rows are told apart by their columns and the types of their values.

    Args:
        taken: the format that the source is read as.
        known: all that were looked for.
    """

    def __init__(self, taken: Format, known: Sequence[Format]) -> None:
        self._taken = taken
        self._others = [replace(form, written=taken.written) for form in known if form.name != taken.name]
        self._seen: dict[frozenset[tuple[str, type]], OtherRows | None] = {}

    def add(self, record: Record) -> None:
        """Looks at one row."""
        if not isinstance(record.content, dict):
            return
        kind = frozenset((name, type(value)) for name, value in record.content.items() if value is not None)
        if kind not in self._seen:
            if len(self._seen) == _KINDS:
                return
            self._seen[kind] = self._judged(record.row, record.content)
        if other := self._seen[kind]:
            other.count += 1

    def told(self) -> list[dict[str, Any]]:
        """`row`, `columns`, `problem` and `count` of the most frequent kinds, as JSON-like values."""
        found = sorted(filter(None, self._seen.values()), key=lambda other: -other.count)
        return [asdict(other) for other in found[:_TOLD]]

    def _judged(self, row: int, content: dict[str, Any]) -> OtherRows | None:
        problem = self._problem(content)
        return OtherRows(row, shown(", ".join(content)), shown(problem)) if problem else None

    def _problem(self, row: dict[str, Any]) -> str:
        taken = self._taken.read(row)
        for other in self._others:
            if other.fits(row) and isinstance(found := other.read(row), list) and found != taken:
                if isinstance(taken, list):
                    return f"{other.name} would read other pairs of them than {self._taken.name}"
                if not self._taken.fits(row):
                    return f"they are of the format {other.name}, not {self._taken.name}"
        lacking = self._taken.lacks(row)
        return f"they lack {listed([f'`{name}`' for name in lacking])}" if lacking else ""
