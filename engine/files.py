"""Files: digests that are remembered, so that an unchanged file is read once; and writing that survives a crash."""

import json
import os
import time
from functools import cached_property
from pathlib import Path

from engine.fingerprint import file_digest

# A file written again within one tick of the file system's clock keeps its time: one that is this young is read again.
_TICK_NANOSECONDS = 50_000_000


class HashMemory:
    """Digests of files by path, size, times and inode, kept in a JSON file that may be lost or shared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._learnt: dict[str, list[int | str]] = {}

    @cached_property
    def _known(self) -> dict[str, list[int | str]]:
        try:
            entries = json.loads(self._path.read_text("utf-8")).items()
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}
        return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == len(_FIELDS)}

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, read only when it is not known to be unchanged. Raises OSError."""
        mark = _mark(path)
        name = str(path.resolve())
        known = self._known.get(name)
        if known is None or known[:-1] != mark:
            self.learn(path, found := file_digest(path), mark)
            return found
        return str(known[-1])

    def learn(self, path: Path, sha256: str, mark: list[int | str] | None = None) -> None:
        """Remembers the digest of a file, as it was at `mark`, where that is safe."""
        mark = mark or _mark(path)
        if time.time_ns() - int(mark[1]) > _TICK_NANOSECONDS:
            self._known[str(path.resolve())] = self._learnt[str(path.resolve())] = [*mark, sha256]

    def save(self) -> None:
        """Writes what was learnt beside what others wrote; losing it costs time only, so a failure is no error."""
        if not self._learnt:
            return
        others = HashMemory(self._path)._known
        kept = {name: entry for name, entry in (others | self._learnt).items() if Path(name).exists()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kept))
            self._learnt = {}
        except OSError:
            pass


_FIELDS = ("bytes", "mtime", "ctime", "inode", "sha256")


def _mark(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that a reader sees the old or the new one, never half. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has a file's content, or a folder's list of names, on the disk before it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
