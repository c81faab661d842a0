"""Evenly spaced row groups of a table, so that a page of a million rows takes no longer than one of fifty thousand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import DataError
from engine.reports.markdown import number

MOST_ROWS = 50_000


@dataclass(frozen=True)
class Sampled:
    """A table, or the part of it that is looked at. Made by `sampled`.

    Attributes:
        groups: the row groups that are read, ascending.
        rows: how many rows they have.
        of: how many rows the table has.
    """

    path: Path
    groups: tuple[int, ...]
    rows: int
    of: int

    @property
    def words(self) -> str:
        """What share of the table was looked at, as a sentence; empty where it was all of it."""
        if self.rows == self.of:
            return ""
        return f"Of {number(self.of)} pairs, {number(self.rows)} were looked at, in evenly spaced groups."

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Those columns of the row groups, one after the other. Raises DataError: not readable, or no such column."""
        with _opened(self.path, columns) as file:
            for group in self.groups:
                yield file.read_row_group(group, columns=list(columns))

    def row(self, at: int, columns: Sequence[str]) -> dict[str, Any]:
        """The `at`-th of the rows that are looked at. Raises DataError as `tables`, IndexError."""
        with _opened(self.path, columns) as file:
            for group in self.groups:
                rows = file.metadata.row_group(group).num_rows
                if at < rows:
                    found: dict[str, Any] = (
                        file.read_row_group(group, columns=list(columns)).slice(at, 1).to_pylist()[0]
                    )
                    return found
                at -= rows
        raise IndexError(at)


def sampled(path: Path, most: int = MOST_ROWS) -> Sampled:
    """The table, or row groups of it with about `most` rows in all. Raises DataError when it is not readable."""
    with _opened(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    total = sum(sizes)
    taken = len(sizes) if total <= most else max(1, most * len(sizes) // total)
    groups = tuple(sorted({at * (len(sizes) - 1) // max(taken - 1, 1) for at in range(taken)}))
    return Sampled(path, groups, sum(sizes[group] for group in groups), total)


@contextmanager
def _opened(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError("a table lacks columns", found=", ".join(missing), where=str(path))
            yield file
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError("a table cannot be read", found=str(error), where=str(path)) from None
