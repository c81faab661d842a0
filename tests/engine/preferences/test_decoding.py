from pathlib import Path

import pytest

from engine.errors import DataError
from engine.preferences.decoding import decoded, lines, undecoded, wrong_encoding


def test_a_byte_that_does_not_decode_is_found_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffine\ngood\xff\n")
    with decoded(tmp_path / "a.txt", "utf-8") as text:
        first, second = lines(text)
    assert first == "fine\n" and undecoded(first, "utf-8") is None
    refusal = undecoded(second, "utf-8")
    assert refusal and (refusal.reason, refusal.detail) == ("wrong_encoding", "byte 0xff is not utf-8, after: good")


def test_strict_reading_stops_at_such_a_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\xff\n")
    with (
        pytest.raises(DataError, match="byte 0xff at byte 4"),
        decoded(tmp_path / "a.txt", "utf-8", strict=True) as text,
    ):
        text.read()


@pytest.mark.parametrize(
    ("text", "encoding"), [("安全有用", "gb18030"), ("café", "cp1252"), ("안전", "euc_kr"), ("hi", "utf-16")]
)
def test_the_encoding_that_fits_is_suggested(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert encoding in wrong_encoding(tmp_path / "a.txt", "utf-8").fix


def test_bytes_that_fit_nothing_ask_for_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    assert wrong_encoding(tmp_path / "a.txt", "utf-8").fix.startswith("find out")
