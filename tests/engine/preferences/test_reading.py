import codecs
import contextlib
import datetime
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError, PipelineError
from engine.preferences.ledger import Refusal
from engine.preferences.reading import read

ROWS = [{"prompt": f"问题 {number}", "chosen": "好", "rejected": "坏"} for number in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = '问题,答\n"一, ""二""","多\n行"\n三,四\n'
CSV_ROWS = [{"问题": '一, "二"', "答": "多\n行"}, {"问题": "三", "答": "四"}]


def written(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    data = content.encode(encoding) if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def contents(path: Path, encoding: str = "utf-8") -> list[Any]:
    return [record.content for record in read(path, encoding)]


def reasons(path: Path, encoding: str = "utf-8") -> dict[int, str]:
    return {record.row: record.content.reason for record in read(path, encoding) if isinstance(record.content, Refusal)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json", "a.JSON.gz"])
def test_lines_of_json_are_rows_under_any_of_their_names(tmp_path: Path, name: str) -> None:
    records = list(read(written(tmp_path, name, LINES)))
    assert [(record.source, record.row, record.content) for record in records] == [
        (name, number, row) for number, row in enumerate(ROWS, 1)
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_json_array_is_rows(tmp_path: Path, name: str, indent: int | None) -> None:
    assert contents(written(tmp_path, name, json.dumps(ROWS, indent=indent))) == ROWS


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_json_array_reads_the_same_in_pieces_of_any_size(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.preferences.reading._CHUNK_CHARACTERS", chunk)
    rows = [*ROWS, {"n": 123456789, "e": "\\u4e00😀", "deep": [{"x": []}]}, {}]
    assert contents(written(tmp_path, "a.json", json.dumps(rows))) == rows
    assert contents(written(tmp_path, "b.json", json.dumps(rows[0], indent=1))) == rows[:1]


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_number_that_goes_on_in_the_next_piece_is_one_element(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.preferences.reading._CHUNK_CHARACTERS", chunk)
    path = written(tmp_path, "a.json", '[123456789, {"a": 1}]')
    assert [content if isinstance(content, dict) else content.detail for content in contents(path)] == [
        "int: 123456789",
        {"a": 1},
    ]


def test_elements_of_an_array_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    assert reasons(written(tmp_path, "a.json", '[{"a": 1}, 12, null, {"a": 2}]')) == {
        2: "not_an_object",
        3: "not_an_object",
    }


@pytest.mark.parametrize("end", ["", ",", ', {"a"', "] extra", '] [{"a": 1}]', ' {"a": 1}]'])
def test_a_broken_json_array_is_an_error_that_counts_what_was_whole(tmp_path: Path, end: str) -> None:
    with pytest.raises(DataError, match=r"cut or broken[^∅]*after 1 whole elements"):
        contents(written(tmp_path, "a.json", '[{"a": 1}' + end))


def test_broken_lines_are_refused_where_they_are(tmp_path: Path) -> None:
    huge, deep = '{"a": ' + "9" * 5_000 + "}", '{"a": ' + "[" * 100_000 + "}"
    lines = ['{"a": 1}', '{"a": ', "[1]", "", "\0", huge, deep, '{"a": 2}']
    path = written(tmp_path, "a.jsonl", "\r\n".join(lines))
    assert reasons(path) == {row: "not_an_object" if row == 3 else "broken_json" for row in (2, 3, 5, 6, 7)}
    assert contents(path)[-1] == {"a": 2}


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    for name, text, rows in (("a.jsonl", LINES, ROWS), ("a.json", json.dumps(ROWS), ROWS), ("a.csv", CSV, CSV_ROWS)):
        assert contents(written(tmp_path, name, codecs.BOM_UTF8 + text.encode())) == rows


def test_a_byte_order_mark_before_a_quoted_header_is_no_part_of_it(tmp_path: Path) -> None:
    assert contents(written(tmp_path, "a.csv", '\ufeff"a","b"\n1,2\n')) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig", "utf-16-le"])
def test_other_encodings_are_read_by_name(tmp_path: Path, encoding: str) -> None:
    assert contents(written(tmp_path, "a.jsonl", LINES, encoding), encoding) == ROWS
    assert contents(written(tmp_path, "a.json.gz", json.dumps(ROWS, ensure_ascii=False), encoding), encoding) == ROWS
    assert contents(written(tmp_path, "a.csv", CSV, encoding), encoding) == CSV_ROWS


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", LINES), ("a.csv", CSV), ("a.json", json.dumps(ROWS, ensure_ascii=False))]
)
@pytest.mark.parametrize(("real", "fits"), [("gb18030", "gb18030"), ("utf-16", "utf-16")])
def test_a_file_in_another_encoding_is_an_error_that_names_one_that_fits(
    tmp_path: Path, name: str, text: str, real: str, fits: str
) -> None:
    with pytest.raises(DataError, match="not in the encoding utf-8") as caught:
        contents(written(tmp_path, name, text, real))
    assert f"download.encoding={fits}" in caught.value.fix and re.search(r"byte 0x\w\w at byte \d", caught.value.found)


def test_plain_ascii_in_utf_16_is_known_by_its_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not in the encoding utf-8") as caught:
        contents(written(tmp_path, "a.jsonl", '{"a": 1}\n' * 5, "utf-16"))
    assert "download.encoding=utf-16" in caught.value.fix


def test_a_file_that_is_no_utf_16_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not in the encoding utf-16") as caught:
        contents(written(tmp_path, "a.jsonl", LINES), "utf-16")
    assert "download.encoding=utf-8" in caught.value.fix


def test_single_rows_in_another_encoding_are_refused(tmp_path: Path) -> None:
    good, bad = '{"a": "好"}\n'.encode(), '{"a": "好"}\n'.encode("gb18030")
    assert reasons(written(tmp_path, "a.jsonl", good + bad + good + good)) == {2: "wrong_encoding"}
    good, bad = "好,1\n".encode(), "好,1\n".encode("gb18030")
    assert reasons(written(tmp_path, "a.csv", b"a,b\n" + good + bad + good)) == {2: "wrong_encoding"}


def test_a_file_that_mostly_does_not_decode_is_given_up_early(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": "好"}\n'.encode("gb18030") * 1_000)
    given_up = read(path)
    with pytest.raises(DataError, match="encoding"):
        for _ in range(200):
            next(given_up)


def test_csv_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "a,b\n1,2\n\n1\n1,2,3\n3,4\n")
    assert reasons(path) == {2: "wrong_columns", 3: "wrong_columns"}
    assert contents(path)[-1] == {"a": "3", "b": "4"}


def test_a_broken_csv_record_is_refused_with_its_lines(tmp_path: Path) -> None:
    records = list(read(written(tmp_path, "a.csv", 'a,b\n1,2\n"x\ny"z,2\n3,4\n')))
    assert records[1].content == Refusal("broken_csv", "lines 3 to 4: ',' expected after '\"'")
    assert records[2].content == {"a": "3", "b": "4"}


def test_csv_fields_may_be_long_and_hold_nul(tmp_path: Path) -> None:
    assert contents(written(tmp_path, "a.csv", "a,b\n" + "x" * 200_000 + ",\0\n")) == [{"a": "x" * 200_000, "b": "\0"}]


@pytest.mark.parametrize("text", ['a,b\n1,2\n3,"fo', 'a,b\n1,2\n"3,4\n5,6\n'])
def test_a_csv_that_ends_in_quotes_is_an_error_and_no_shorter_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="ends inside a quoted field") as caught:
        contents(written(tmp_path, "a.csv", text))
    assert "line 3" in caught.value.found


def test_a_csv_header_that_names_a_column_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column twice"):
        contents(written(tmp_path, "a.csv", "a,a\n1,2\n"))


def test_parquet_rows_come_with_their_values(tmp_path: Path) -> None:
    far = datetime.datetime(2026, 1, 1, 0, 0, 0, 1)
    table = pa.table({"a": ["x", None], "n": [1, 2], "t": pa.array([far, far], pa.timestamp("ns")), "l": [[1], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == [
        {"a": "x", "n": 1, "t": "2026-01-01 00:00:00.000001000", "l": [1]},
        {"a": None, "n": 2, "t": "2026-01-01 00:00:00.000001000", "l": []},
    ]


def test_a_cut_parquet_file_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x"] * 100}), tmp_path / "whole.parquet")
    path = written(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="cut or damaged"):
        contents(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_file_is_an_error_after_its_readable_rows(tmp_path: Path, name: str, damage: str) -> None:
    rows = [{"a": f"{number * 7919 % 10007:x}"} for number in range(20_000)]
    text = {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "a.json": json.dumps(rows)}
    text["a.csv"] = "a\n" + "".join(f"{row['a']}\n" for row in rows)
    packed = bytearray(gzip.compress(text[name].encode()))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(packed if damage == "flipped" else packed[:middle])
    seen: list[Any] = []
    with pytest.raises(DataError, match=r"a gzip file is cut or damaged|cut or broken|encoding") as caught:
        seen.extend(record.content for record in read(path))  # extend keeps what came before the error
    assert str(path) in str(caught.value)
    if damage == "cut":
        assert f"after {len(seen):,} readable rows" in caught.value.found
        assert len(seen) > 5_000 and seen == rows[: len(seen)]


def test_a_plain_file_under_a_gz_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_text(LINES)
    with pytest.raises(DataError, match="gzip"):
        contents(tmp_path / "a.jsonl.gz")


def test_a_jsonl_cut_in_its_last_line_loses_that_line_only(tmp_path: Path) -> None:
    assert reasons(written(tmp_path, "a.jsonl", LINES[:-5])) == {3: "broken_json"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.gz"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="empty"):
        (tmp_path / name).touch()
        contents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", " \n\n"), ("a.json", "\n"), ("a.json", "[]"), ("a.csv", "a,b\n"), ("a.jsonl.gz", ""), ("a.csv", "\n")],
)
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match="holds no readable row"):
        contents(written(tmp_path, name, text))


def test_a_file_of_refusals_only_is_an_error_that_shows_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 unreadable rows; row 1: not_an_object: int: 1"):
        contents(written(tmp_path, "a.jsonl", "1\n2\n"))


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.parquet.gz", "a.tar.gz"])
def test_an_unknown_suffix_is_an_error_that_names_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="kind that cannot be read") as caught:
        contents(written(tmp_path, name, LINES))
    assert ".jsonl" in caught.value.expected


JSON_LINES = st.lists(
    st.binary(max_size=40) | st.sampled_from([b'{"a": "b"}', b'{"a": "\xff"}', b"", b"\xef\xbb\xbf", b'{"\\ud800": 1}'])
).map(b"\n".join)


@settings(max_examples=300)
@given(JSON_LINES, st.sampled_from(["utf-8", "gb18030", "utf-16", "shift_jis"]))
def test_any_bytes_are_rows_and_refusals_or_an_error_that_is_meant(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, encoding: str
) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        path = written(tmp_path_factory.getbasetemp(), name, data)
        with contextlib.suppress(PipelineError):
            list(read(path, encoding))


@settings(max_examples=300)
@given(JSON_LINES)
def test_every_line_that_is_not_blank_is_a_row_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    data = b"{}\n" * 200 + data  # so that the file as a whole is readable
    lines = [number for number, line in enumerate(data.splitlines(), 1) if line.strip(b" \t\r\n")]
    path = written(tmp_path_factory.getbasetemp(), "a.jsonl", data)
    assert [record.row for record in read(path)] == lines


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    path = written(tmp_path_factory.getbasetemp(), "a.csv", text.getvalue())
    assert contents(path) == [{"a": first, "b": second} for first, second in rows]
