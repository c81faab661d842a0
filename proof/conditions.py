"""What an attempt is made to believe of its machine: a wrong clock, and files that seem untouched."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def set_clock(seconds: float) -> None:
    """Moves this process's wall clock; the file system keeps the true one, as where the clock is moved afterwards."""
    now, now_ns, local, utc, write = time.time, time.time_ns, time.localtime, time.gmtime, time.strftime
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
    time.localtime = lambda at=None: local(now() + seconds if at is None else at)
    time.gmtime = lambda at=None: utc(now() + seconds if at is None else at)
    time.strftime = lambda form, at=None: write(form, time.localtime() if at is None else at)


def show_unchanged(shown: Mapping[str, Sequence[float]]) -> None:
    """Has `os.stat` answer what it answered before, for these paths: a file was changed beneath the file system."""
    real = os.stat

    def told(path: Any, **named: Any) -> os.stat_result:
        known = shown.get(os.path.realpath(path)) if isinstance(path, str | os.PathLike) else None
        return _with_nanoseconds(known) if known else real(path, **named)

    os.stat = told


def as_shown(path: Path) -> list[float]:
    """What `show_unchanged` needs in order to show a file as it is now."""
    status = path.stat()
    return [*status[:10], status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns]


def _with_nanoseconds(kept: Sequence[float]) -> os.stat_result:
    whole, times = tuple(int(value) for value in kept[:10]), [int(value) for value in kept[10:]]
    names = ("st_atime", "st_mtime", "st_ctime")
    exact = {name: value / 1e9 for name, value in zip(names, times, strict=True)}
    exact |= {f"{name}_ns": value for name, value in zip(names, times, strict=True)}
    return os.stat_result(whole, exact)
