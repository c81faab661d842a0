"""Bytes to text: what does not decode is found where it is, and told with the encodings that would fit."""

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.errors import DataError
from engine.preferences.ledger import Refusal

WRONG_ENCODING = "wrong_encoding"

_CANDIDATES = ("utf-8", "gb18030", "big5", "shift_jis", "euc_kr", "cp1252")
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UNDECODED = re.compile("[\udc80-\udcff]")  # where `surrogateescape` put a byte that the encoding does not allow
_HEAD_BYTES = 1 << 20


def unzipped(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


@contextmanager
def decoded(path: Path, encoding: str, *, newline: str | None = None, strict: bool = False) -> Iterator[IO[str]]:
    """The file as text. Unless `strict`, a byte that does not decode stays in it for `undecoded` to find.

    Raises:
        DataError: from the place where the text is read, when the file is in another encoding.
    """
    with unzipped(path) as binary:
        if binary.read(2) in _BYTE_ORDER_MARKS and "\n".encode(encoding) == b"\n":
            raise wrong_encoding(path, encoding)
        binary.seek(0)
        errors = "strict" if strict else "surrogateescape"
        try:
            yield io.TextIOWrapper(binary, encoding, errors=errors, newline=newline)
        except UnicodeError:
            raise wrong_encoding(path, encoding) from None


def lines(text: IO[str]) -> Iterator[str]:
    """The lines of a file, the first without its byte order mark."""
    for number, line in enumerate(text):
        yield line if number else line.removeprefix("\ufeff")


def undecoded(text: str, encoding: str) -> Refusal | None:
    """The refusal of a text that holds a byte its encoding does not allow; None when it holds none."""
    found = _UNDECODED.search(text)
    if not found:
        return None
    byte = ord(found[0]) - 0xDC00
    return Refusal(WRONG_ENCODING, f"byte 0x{byte:02x} is not {encoding}, after: {text[: found.start()][-60:]}")


def wrong_encoding(path: Path, encoding: str) -> DataError:
    """The error for a file that is not in `encoding`: the first byte that says so, and the encodings that would fit."""
    with unzipped(path) as file:
        head = file.read(_HEAD_BYTES)
    position = _misfit(head, encoding)
    found = "bytes that do not decode" if position is None else f"byte 0x{head[position]:02x} at byte {position:,}"
    fitting = ["utf-16"] if head[:2] in _BYTE_ORDER_MARKS else []
    fitting += [name for name in _CANDIDATES if name != encoding and _misfit(head, name) is None]
    fix = f"set download.encoding={fitting[0]} (fits the bytes: {', '.join(fitting)})" if fitting else ""
    return DataError(
        f"a data file is not in the encoding {encoding}",
        found=found,
        where=str(path),
        fix=fix or "find out the file's encoding and give its name as download.encoding",
    )


def _misfit(head: bytes, encoding: str) -> int | None:
    """Where the bytes stop being of an encoding, or None; they may end within a character."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(head)
    except UnicodeDecodeError as error:
        return min(error.start, len(head) - 1)
    except UnicodeError:
        return 0
    return None
