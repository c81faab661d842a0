"""Digests of values and files: the same meaning always gives the same digest, or an error."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

_UNSTABLE = "cannot be written the same way twice"


def canonical(value: object) -> str:
    """`value` as JSON text that depends on its meaning only: keys sorted, no spaces.

    Raises:
        TypeError: for anything but None, bool, int, finite float, str of real characters, list, tuple, and mappings
            with str keys.
    """
    return json.dumps(_checked(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _checked(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _checked_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} {_UNSTABLE}")
        return value + 0.0  # -0.0 becomes 0.0: they mean the same
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a mapping with keys other than str {_UNSTABLE}: {value!r}")
        return {_checked_text(key): _checked(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} {_UNSTABLE}: {value!r}")


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TypeError(f"half a character (a lone surrogate) {_UNSTABLE}: {text!r}") from None
    return text


def digest(value: object) -> str:
    """SHA-256 of the canonical text of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; reads in blocks, so any size fits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: object, new: object, at: str = "") -> list[tuple[str, object, object]]:
    """Leaves in which two canonical values differ, as (dotted name, old, new); a missing leaf is None.

    Empty exactly when their digests are the same.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            difference
            for key in sorted({*old, *new})
            for name in [f"{at}.{key}" if at else str(key)]
            for difference in (
                differences(old[key], new[key], name)
                if key in old and key in new
                else [(name, old.get(key), new.get(key))]
            )
        ]
    return [] if canonical(old) == canonical(new) else [(at, old, new)]
