"""What the columns of some rows hold, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from engine.preferences.ledger import shown

_COLUMNS, _KINDS_TOLD = 200, 4


class Columns:
    """What each column of the rows that were added holds: `text`, `list of {from, value}`, `number or nothing`."""

    def __init__(self) -> None:
        self._rows = 0
        self._kinds: dict[str, Counter[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one row."""
        self._rows += 1
        for name, value in row.items():
            if name in self._kinds or len(self._kinds) < _COLUMNS:
                self._kinds.setdefault(name, Counter())[_kind(value)] += 1

    def told(self) -> dict[str, str]:
        """By name, in the order in which they came; a column that some rows lack holds nothing there."""
        return {shown(name): self._words(kinds) for name, kinds in self._kinds.items()}

    def _words(self, kinds: Counter[str]) -> str:
        absent = kinds["nothing"] or kinds.total() < self._rows
        frequent = [kind for kind, _ in kinds.most_common() if kind != "nothing"]
        more = ["something else"] if frequent[_KINDS_TOLD:] else []
        return " or ".join([*frequent[:_KINDS_TOLD], *more, *(["nothing"] if absent else [])])


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What each column of some rows holds."""
    columns = Columns()
    for row in rows:
        columns.add(row)
    return columns.told()


def _kind(value: object) -> str:
    if isinstance(value, list | tuple):
        inside = sorted({"lists" if isinstance(item, list | tuple) else _kind(item) for item in value})
        return f"list of {' or '.join(inside)}" if inside else "empty list"
    if isinstance(value, dict):
        return f"{{{shown(', '.join(map(str, value)))}}}"
    if value is None:
        return "nothing"
    return {str: "text", bool: "true or false", int: "number", float: "number"}.get(type(value), type(value).__name__)
