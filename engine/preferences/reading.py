"""Rows of local files, one at a time.

A row that is broken on its own (a JSON line, a CSV record) is a refusal, and reading goes on. A file that is broken
as a whole (empty, cut in the middle, in another encoding) is an error: half a file never passes for a whole one.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import DataError
from engine.preferences.decoding import WRONG_ENCODING, decoded, lines, undecoded, wrong_encoding
from engine.preferences.ledger import Refusal, shown

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_CUT = (EOFError, gzip.BadGzipFile, zlib.error)
_BLANK = " \t\r\n"
_FIELD_CHARACTERS = 2**31 - 1
_BATCH_ROWS = 1_000
_CHUNK_CHARACTERS = 1 << 16
_ENOUGH_RECORDS = 100  # after which a file whose records mostly do not decode is given up


@dataclass(frozen=True)
class Record:
    """One row of a source, or why it cannot be read.

    Attributes:
        row: counted from 1: the line of a JSONL file, the record of any other (a CSV's header is not one).
    """

    source: str
    row: int
    content: dict[str, Any] | Refusal


Rows = Iterator[tuple[int, dict[str, Any] | Refusal]]


def read(path: Path, encoding: str = "utf-8") -> Iterator[Record]:
    """The rows of a JSON, JSONL, CSV or Parquet file, any of the first three gzipped if its name ends in .gz.

    A byte order mark is passed over. Memory stays flat: a JSON array, too, is read element by element.

    Raises:
        DataError: the suffix is unknown, or the file is empty, cut, mostly in another encoding, or without a
            single readable row. Rows before a cut are given first.
    """
    reader = _reader(path)
    if path.stat().st_size == 0:
        raise DataError("a data file is empty", expected="rows", found="0 bytes", where=str(path))
    readable, seen, first_refusal = 0, 0, ""
    try:
        for row, content in _mostly_decoded(reader(path, encoding), path, encoding):
            seen += 1
            if isinstance(content, Refusal):
                first_refusal = first_refusal or f"row {row}: {content.reason}: {shown(content.detail)}"
            else:
                readable += 1
            yield Record(shown(path.name), row, content)
    except _CUT as error:
        raise DataError(
            "a gzip file is cut or damaged",
            found=f"{error or type(error).__name__}, after {readable:,} readable rows",
            where=str(path),
            fix="download or copy it again; for the rows that are left, unpack it yourself and give the plain file",
        ) from None
    if not readable:
        found = f"{seen:,} unreadable rows; {first_refusal}" if seen else "nothing but white space or a header"
        raise DataError("a data file holds no readable row", found=found, where=str(path))


def _reader(path: Path) -> Callable[[Path, str], Rows]:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and name.endswith(".gz")):
        raise DataError(
            "a data file is of a kind that cannot be read",
            expected=f"a name that ends in {', '.join(SUFFIXES)}; or in .gz after any but the last",
            found=path.name,
            where=str(path),
        )
    readers = {".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    return readers.get(suffix, _line_rows)


def _line_rows(path: Path, encoding: str) -> Rows:
    with decoded(path, encoding) as text:
        for row, line in enumerate(lines(text), 1):
            if line.strip(_BLANK):
                yield row, _json_line(line.strip(_BLANK), encoding)


def _json_line(line: str, encoding: str) -> dict[str, Any] | Refusal:
    if refusal := undecoded(line, encoding):
        return refusal
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return Refusal("broken_json", f"{error}: {line}")


def _object(value: object) -> dict[str, Any] | Refusal:
    return value if isinstance(value, dict) else Refusal("not_an_object", f"{type(value).__name__}: {value!r:.100}")


def _json_rows(path: Path, encoding: str) -> Rows:
    """The elements of an array, the one object of a document, or lines of objects under the name .json."""
    with decoded(path, encoding) as text:
        start = text.read(_CHUNK_CHARACTERS).lstrip(_BLANK + "\ufeff")
        line = "" if start.startswith("[") else (start + text.readline()).partition("\n")[0]
    if line and not isinstance(_json_line(line, encoding), Refusal):
        yield from _line_rows(path, encoding)
    elif start or line:
        with decoded(path, encoding, strict=True) as text:
            yield from _document_rows(text, path)


def _document_rows(text: IO[str], path: Path) -> Rows:
    row = 0
    try:
        for row, value in enumerate(_Document(text).values(), 1):
            yield row, _object(value)
    except UnicodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(
            "a JSON file is cut or broken",
            found=f"{error}, after {row:,} whole elements",
            where=str(path),
            fix="make it anew; one object per line (.jsonl) would let the rows that are whole be read",
        ) from None


class _Document:
    """A JSON document of which little more than one element is held at a time."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._held = text.read(_CHUNK_CHARACTERS).removeprefix("\ufeff")
        self._decoder = json.JSONDecoder()

    def values(self) -> Iterator[object]:
        """The elements of the array, or the one value that is no array. Raises ValueError where it is broken."""
        if self._next() != "[":
            yield self._value()
        else:
            self._take("[")
            while self._next() != "]":
                yield self._value()
                if self._next() != "]":
                    self._take(",")
            self._take("]")
        if self._next():
            raise ValueError("more text follows the end of the document")

    def _next(self) -> str:
        while not (held := self._held.lstrip(_BLANK)) and self._more():
            pass
        self._held = held
        return held[:1]

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise ValueError(f"found {self._held[:20]!r} in place of {mark!r}" if self._held else "the file ends early")
        self._held = self._held[1:]

    def _value(self) -> object:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if end < len(self._held) or not self._more():  # a number may go on in the next chunk
                self._held = self._held[end:]
                return value

    def _more(self) -> bool:
        more = self._text.read(max(_CHUNK_CHARACTERS, len(self._held)))
        self._held += more
        return bool(more)


def _csv_rows(path: Path, encoding: str) -> Rows:
    csv.field_size_limit(_FIELD_CHARACTERS)
    with decoded(path, encoding, newline="") as text:
        records = _csv_records(lines(text), path)
        header = next(records, [])
        if isinstance(header, Refusal) or len(set(header)) < len(header):
            found = header.detail if isinstance(header, Refusal) else shown(", ".join(header))
            raise DataError("the header of a CSV file is broken or names a column twice", found=found, where=str(path))
        if undecoded("".join(header), encoding):
            raise wrong_encoding(path, encoding)
        for row, fields in enumerate(records, 1):
            yield row, fields if isinstance(fields, Refusal) else _named(header, fields, encoding)


def _csv_records(lines: Iterator[str], path: Path) -> Iterator[list[str] | Refusal]:
    reader = csv.reader(lines, strict=True)  # not strict, a file cut inside quotes would end in a shorter response
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(
                    "a CSV file ends inside a quoted field: it is cut, or a quote is left open",
                    found=f"the field begins in the record of line {first:,}",
                    where=str(path),
                ) from None
            yield Refusal("broken_csv", f"lines {first} to {reader.line_num}: {error}")
        else:
            if fields:
                yield fields


def _named(header: list[str], fields: list[str], encoding: str) -> dict[str, Any] | Refusal:
    if len(fields) != len(header):
        return Refusal("wrong_columns", f"{len(fields)} fields under {len(header)} columns: {', '.join(fields)}")
    return undecoded("\n".join(fields), encoding) or dict(zip(header, fields, strict=True))


def _parquet_rows(path: Path, encoding: str) -> Rows:
    row = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # a buffer would come to hold the whole file
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for content in _plain(batch).to_pylist():
                    row += 1
                    yield row, content
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        found = f"{error}, after {row:,} readable rows"
        raise DataError(
            "a Parquet file is cut or damaged", found=found, where=str(path), fix="download or copy it again"
        ) from None


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times as text: Python's own cannot hold all of Parquet's."""
    columns = [column.cast(pa.string()) if pa.types.is_temporal(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _mostly_decoded(rows: Rows, path: Path, encoding: str) -> Rows:
    wrong = seen = 0
    for row, content in rows:
        seen += 1
        wrong += isinstance(content, Refusal) and content.reason == WRONG_ENCODING
        yield row, content
        if seen == _ENOUGH_RECORDS and wrong * 2 > seen:
            break
    if wrong * 2 > seen:
        raise wrong_encoding(path, encoding)
