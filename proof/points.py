"""The points of a stage at which an attempt can end: around every write, fsync, rename and removal below its folder.

Installed in an attempt's own process, from outside: the functions of `os` and `open` are wrapped, and the two writers
that do not go through them, Parquet's and safetensors'. The stage is read off the paths, since a stage begins with its
lock and writes into a work folder of its name.
"""

import builtins
import io
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proof.orders import Strike

POINTS = (
    "before write",
    "inside write",
    "after write",
    "before fsync",
    "after fsync",
    "before rename",
    "after rename",
    "after mkdir",
    "removing",
)
_STAGE = re.compile(r"/\.(?:work|locks)/([a-z]+)-")
_WRITING = frozenset("wax+")


class Watch:
    """Counts the operations of a run by (stage, point), and ends the process at the one that is asked for.

    Attributes:
        counts: so far; operations before the first stage count under "".
        begins: told the name of every stage that begins.
        writes: told every path that is about to be written.
    """

    def __init__(
        self,
        folder: str,
        strike: Strike | None = None,
        begins: Callable[[str], object] = lambda stage: None,
        writes: Callable[[str], object] = lambda path: None,
    ) -> None:
        self._folder, self._strike = os.path.realpath(folder) + os.sep, strike
        self._begins, self._writes = begins, writes
        self._stage = ""
        self.counts: Counter[tuple[str, str]] = Counter()

    def at(self, point: str, path: str = "", before_dying: Callable[[], object] = lambda: None) -> None:
        """Notes that the process is at a point; `before_dying` is what is still done where it ends here."""
        if (found := _STAGE.search(path)) and found[1] != self._stage:
            self._stage = found[1]
            self._begins(self._stage)
        if path and point == "before write":
            self._writes(path)
        here = (self._stage, point)
        self.counts[here] += 1
        strike = self._strike
        if strike and here == (strike.stage, strike.point) and self.counts[here] == strike.nth:
            before_dying()
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(self, path: Any, dir_fd: int | None = None) -> str:
        """The absolute path of what is below the folder, else nothing."""
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        base = Path.cwd() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        absolute = os.path.normpath(base / os.fsdecode(path))
        return absolute if absolute.startswith(self._folder) else ""


def install(watch: Watch) -> None:
    """Wraps what this process writes with. There is no way back: it is for a process that ends soon."""
    _wrap_system(watch)
    _wrap_open(watch)
    _wrap_parquet(watch)
    _wrap_safetensors(watch)


def _wrap_system(watch: Watch) -> None:
    changing = {"rename": "rename", "replace": "rename"}
    for name, word in changing.items():
        _surround(watch, name, f"before {word}", f"after {word}")
    for name in ("unlink", "remove", "rmdir"):
        _surround(watch, name, "", "removing")
    _surround(watch, "mkdir", "", "after mkdir")
    fsync, open_descriptor = os.fsync, os.open

    def synced(descriptor: Any) -> None:
        watch.at("before fsync")
        fsync(descriptor)
        watch.at("after fsync")

    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and (place := watch.inside(path, dir_fd)):
            watch.at("before write", place)  # a lock: it tells which stage begins
        return open_descriptor(path, flags, mode, dir_fd=dir_fd)

    os.fsync, os.open = synced, opened  # type: ignore[assignment]


def _surround(watch: Watch, name: str, before: str, after: str) -> None:
    real = getattr(os, name)

    def wrapped(path: Any, *rest: Any, **named: Any) -> Any:
        place = watch.inside(path, named.get("dir_fd", named.get("src_dir_fd")))
        if place and before:
            watch.at(before, place)
        result = real(path, *rest, **named)
        if place:
            watch.at(after, place)
        return result

    setattr(os, name, wrapped)


def _wrap_open(watch: Watch) -> None:
    real = builtins.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        place = watch.inside(file) if _WRITING & set(mode) else ""
        if not place:
            return real(file, mode, *rest, **named)
        watch.at("before write", place)
        return _watched(watch, real(file, mode, *rest, **named), place)

    builtins.open = io.open = opened


def _watched(watch: Watch, handle: Any, place: str) -> Any:
    write, close = handle.write, handle.close

    def written(data: Any) -> Any:
        def half() -> None:
            write(data[: len(data) // 2])
            handle.flush()

        watch.at("inside write", place, half)
        return write(data)

    def closed() -> None:
        again = handle.closed
        close()
        if not again:
            watch.at("after write", place)

    handle.write, handle.close = written, closed
    return handle


def _wrap_parquet(watch: Watch) -> None:
    from pyarrow.parquet import ParquetWriter

    begin, write, close = ParquetWriter.__init__, ParquetWriter.write_table, ParquetWriter.close

    def began(self: Any, where: Any, *rest: Any, **named: Any) -> None:
        self.watched = watch.inside(where)
        if self.watched:
            watch.at("before write", self.watched)
        begin(self, where, *rest, **named)

    def written(self: Any, *rest: Any, **named: Any) -> None:
        write(self, *rest, **named)
        if self.watched:
            watch.at("inside write", self.watched, lambda: _halve(self.watched))

    def closed(self: Any) -> None:
        was_open = self.is_open
        close(self)
        if self.watched and was_open:
            watch.at("after write", self.watched)

    ParquetWriter.__init__, ParquetWriter.write_table, ParquetWriter.close = began, written, closed


def _wrap_safetensors(watch: Watch) -> None:
    from safetensors import torch as safetensors

    real = safetensors.serialize_file

    def serialized(tensors: Any, filename: Any, *rest: Any, **named: Any) -> None:
        place = watch.inside(filename)
        if place:
            watch.at("before write", place)
        real(tensors, filename, *rest, **named)
        if place:
            watch.at("inside write", place, lambda: _halve(place))
            watch.at("after write", place)

    safetensors.serialize_file = serialized


def _halve(path: str) -> None:
    """Leaves the file as it is halfway through being written."""
    os.truncate(path, Path(path).stat().st_size // 2)
