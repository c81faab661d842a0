"""Reference scores of single pairs, kept across artifacts: what one run has scored, any other takes over.

`<root>/<scorer>/` holds what one scorer has scored: `scorer.json`, which says what it is, and shards, Parquet tables of
SCORED_ROWS. A shard bears the SHA-256 of its bytes as its name, so a torn or changed one is recognised before it is
used; it is moved to `<root>/.quarantine/`, and its rows are scored again.
"""

import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.errors import DataError
from engine.files import HashMemory, sync, write_atomically
from engine.fingerprint import canonical, digest, file_digest
from engine.preferences.schema import SCORED_ROWS, read_table, writer

SCORES = "scores"  # the store's folder, below that of the data
_SCORER = "scorer.json"
_HASH_DIGITS = 64
_log = logging.getLogger("dpo")


def write_shard(folder: Path, rows: pa.Table, prefix: str = "") -> Path:
    """Writes SCORED_ROWS as `<prefix><SHA-256>.parquet`, which appears by one rename when it is on the disk."""
    temporary = folder / f".{prefix}{os.getpid()}-{time.monotonic_ns()}.parquet"
    try:
        with writer(temporary, SCORED_ROWS) as file:
            file.write_table(rows)
        sync(temporary)
        shard = temporary.rename(folder / f"{prefix}{file_digest(temporary)}.parquet")
        sync(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def read_shard(path: Path) -> pa.Table | None:
    """The rows of a shard; None when it is gone or not what it was. Reads every byte."""
    try:
        return read_table(path, SCORED_ROWS) if path.stem.endswith(file_digest(path)) else None
    except (OSError, DataError):
        return None


class ScoreStore:
    """The scores below one root, whoever scored them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, scorer: Mapping[str, Any]) -> "Scored":
        """What one scorer has scored.

        Args:
            scorer: all that decides a score beyond rounding, as JSON-like values.
        """
        return Scored(self.root, scorer)

    def verify(self, folder: Path, *, keep: bool = False) -> list[tuple[Path, Path | None]]:
        """Every shard of a scorer that is not what was written, and where it was moved to. Reads every byte.

        Args:
            keep: leave them where they are.

        Raises:
            OSError: one cannot be moved.
        """
        broken = [path for path in _shards(folder) if read_shard(path) is None]
        return [(path, None if keep else _quarantine(self.root, path)) for path in broken]

    def scorers(self) -> list[Path]:
        """The folders of all scorers. The time of one is that of its last use."""
        return sorted(path.parent for path in self.root.glob(f"*/{_SCORER}"))


class Scored:
    """The rows that one scorer has scored."""

    def __init__(self, root: Path, scorer: Mapping[str, Any]) -> None:
        self._root, self._scorer = root, scorer
        self._hashes = HashMemory(root / ".hashes.json")
        self.folder = root / digest(scorer)[:16]

    def lookup(self, keys: Collection[bytes]) -> pa.Table:
        """SCORED_ROWS of those keys that are there, each once. A broken shard is put aside with a warning."""
        wanted, found = set(keys), [SCORED_ROWS.empty_table()]
        for shard in _shards(self.folder):
            if not wanted:
                break
            rows = self._sound(shard)
            places = [row for row, key in enumerate(rows["row_key"].to_pylist()) if key in wanted] if rows else []
            if rows and places:
                taken = rows.take(places)
                found.append(taken)
                wanted.difference_update(taken["row_key"].to_pylist())
        self._hashes.save()
        if len(found) > 1:
            with suppress(OSError):  # the time of the last use is all that is lost
                os.utime(self.folder)
        return pa.concat_tables(found).combine_chunks()

    def publish(self, shard: Path) -> None:
        """Lets others find the rows of a shard that `write_shard` wrote. Once more changes nothing. Raises OSError."""
        try:
            self._publish(shard)
        except FileNotFoundError:  # another run has just set all of them aside
            self._publish(shard)

    def _publish(self, shard: Path) -> None:
        name = f"{shard.stem[-_HASH_DIGITS:]}.parquet"
        target, temporary = self.folder / name, self.folder / f".{name}.{os.getpid()}-{time.monotonic_ns()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / _SCORER).exists():
            write_atomically(self.folder / _SCORER, canonical(self._scorer) + "\n")
        if target.exists():
            return
        try:
            try:
                os.link(shard, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(shard, temporary)
                sync(temporary)
            temporary.rename(target)
            sync(self.folder)
        finally:
            temporary.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Takes all of them out of use, for they are not trusted any more; they go to quarantine. Raises OSError."""
        if self.folder.is_dir():
            place = _quarantine(self._root, self.folder)
            _log.warning("the scores that were kept under this policy are set aside: %s", place)

    def _sound(self, shard: Path) -> pa.Table | None:
        """Its rows; None, after a word, where it is broken or cannot be read."""
        try:
            # What is remembered of it may be wrong, and so may be the memory.
            if self._hashes.of(shard) == shard.stem or self._hashes.read(shard) == shard.stem:
                return read_table(shard, SCORED_ROWS)
            place = f"moved to {_quarantine(self._root, shard)}"
        except FileNotFoundError:  # another run has set it aside
            return None
        except (OSError, DataError) as error:
            place = f"left where it is: {error}"
        _log.warning("the scores in %s are broken and will be made again (%s)", shard, place)
        return None


def _quarantine(root: Path, path: Path) -> Path:
    """Moves a shard, or all of a scorer's, out of use; the time stands last in the new name."""
    target = root / ".quarantine" / f"{path.stem}-{time.time_ns()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    return path.rename(target)


def _shards(folder: Path) -> Iterator[Path]:
    """In the order of their names, which says nothing but is always the same."""
    yield from sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
