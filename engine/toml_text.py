"""Plain values as TOML text that reads back as the same values."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of nested mappings with str keys, lists, str, bool, int and float; None is left out, TOML has none.

    Raises:
        TypeError: for any other value.
    """
    return "\n".join(_table(tables, ())).strip("\n") + "\n"


def assignment(name: str, value: object) -> str:
    """One line `name = value`; a mapping becomes an inline table. Raises as `to_toml`."""
    return f"{_key(name)} = {_value(value)}"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    below = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    own = [assignment(name, item) for name, item in table.items() if name not in below and item is not None]
    if path and (own or not below):
        yield f"\n[{'.'.join(map(_key, path))}]"
    yield from own
    for name, value in below.items():
        yield from _table(value, (*path, name))


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)  # nan, inf, -inf: as TOML spells them
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value if item is not None)}]"
    if isinstance(value, Mapping):
        items = [f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    raise TypeError(f"{type(value).__name__} has no form in TOML: {value!r}")
