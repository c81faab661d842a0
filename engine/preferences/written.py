"""Messages and lists that a table holds as text: cells of JSON, or as Python writes it, as CSV files have them."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.preferences.conversations import ROLES, is_spoken
from engine.preferences.shapes import ANYTHING, TEXT, Column, Shape, Unparsed, as_list, shape_of

_BEGINS = re.compile(r"\s*[\[{]")
# Cut or broken messages: they begin as one does, and somebody known speaks.
_SPEAKS = re.compile(
    r"""\s*\[?\s*\{\s*(?=['"](?:role|from|content|value)['"]\s*:).*?['"](?:role|from)['"]\s*:\s*['"]\s*"""
    rf"""(?:{"|".join(ROLES)})\s*['"]""",
    re.IGNORECASE | re.DOTALL,
)
_SPOKEN = frozenset({Shape.MESSAGE, Shape.TURNS, Shape.REPLY})
_PLAIN = TEXT | {Shape.NOTHING, Shape.EMPTY, Shape.BROKEN}


def written_columns(sample: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> frozenset[str]:
    """The names of those columns whose texts are, most of them, values that a format looks for in such a column.

    Args:
        columns: of all formats that are looked for. Where they take nothing but text, a text stays one.
    """
    sought: dict[str, set[Shape]] = {}
    for column in columns:
        for name in column.names if column.shapes != ANYTHING else ():
            sought.setdefault(name, set()).update(column.shapes - _PLAIN)
    return frozenset(name for name, shapes in sought.items() if shapes and _are_written(name, shapes, sample))


def unwritten(row: Mapping[str, Any], columns: frozenset[str]) -> Mapping[str, Any]:
    """The row with the values that its texts in these columns stand for; blank is None, and other text stays text."""
    if not columns:
        return row
    return {name: _value(value) if name in columns and isinstance(value, str) else value for name, value in row.items()}


def _are_written(name: str, shapes: set[Shape], sample: Sequence[Mapping[str, Any]]) -> bool:
    texts = [row[name] for row in sample if isinstance(row.get(name), str) and row[name].strip()]
    return 2 * sum(_looks(text, shapes) for text in texts) > len(texts)


def _looks(text: str, shapes: set[Shape]) -> bool:
    value = as_list(_value(text))
    if (shape := shape_of(value)) is Shape.BROKEN:
        return _SPEAKS.match(text) is not None
    return shape in shapes and (shape not in _SPOKEN or is_spoken(value))


def _value(text: str) -> Any:
    if not text.strip():
        return None
    if not _BEGINS.match(text):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Unparsed(text)
