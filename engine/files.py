"""Files: digests that are remembered, so that an unchanged file is read once; and writing that survives a crash."""

import json
import os
import re
import time
from functools import cached_property
from pathlib import Path

from engine.fingerprint import file_digest

# A file written again within one tick of the file system's clock keeps its time: one that is this young is read again.
_TICK_NANOSECONDS = 50_000_000


class HashMemory:
    """Digests of files by path, size, times and inode, kept in a JSON file that may be lost, damaged or shared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._learnt: dict[str, list[int | str]] = {}

    @cached_property
    def _known(self) -> dict[str, list[int | str]]:
        try:
            entries = json.loads(self._path.read_text("utf-8")).items()
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}
        return {name: entry for name, entry in entries if _is_entry(entry)}

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, read only when it is not known to be unchanged. Raises OSError."""
        known = self._known.get(str(path.resolve()))
        return self.read(path) if known is None or known[:-1] != mark(path) else str(known[-1])

    def read(self, path: Path) -> str:
        """The SHA-256 of a file, read whatever is known, and remembered. Raises OSError."""
        before = mark(path)
        self.learn(path, found := file_digest(path), before)
        return found

    def learn(self, path: Path, sha256: str, seen: list[int | str]) -> None:
        """Remembers the digest of a file that was read after `seen` was its mark, where that is safe.

        A mark that lies ahead of the clock is safe too: the clock was set back, and a change now would show.
        """
        name = str(path.resolve())
        if abs(time.time_ns() - int(seen[1])) > _TICK_NANOSECONDS:
            self._known[name] = self._learnt[name] = [*seen, sha256]
        elif self._known.pop(name, None) is not None:  # what is remembered may be of another content
            self._learnt.pop(name, None)

    def save(self) -> None:
        """Writes what was learnt beside what others wrote; losing it costs time only, so a failure is no error."""
        if not self._learnt:
            return
        others = HashMemory(self._path)._known
        kept = {name: entry for name, entry in (others | self._learnt).items() if os.path.exists(name)}  # noqa: PTH110 — any text may stand in a damaged memory
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kept))
            self._learnt = {}
        except OSError:
            pass


_FIELDS = ("bytes", "mtime", "ctime", "inode", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def mark(path: Path) -> list[int | str]:
    """Size, times and inode of a file: what changes when it is written. Raises OSError."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == len(_FIELDS)
        and all(type(number) is int for number in entry[:-1])
        and isinstance(entry[-1], str)
        and _SHA256.fullmatch(entry[-1]) is not None
    )


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that a reader, even after a power cut, sees the old or the new. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has a file's content, or a folder's list of names, on the disk before it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
