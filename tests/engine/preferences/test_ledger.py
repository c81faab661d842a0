import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.ledger import Ledger, check_budget, shown
from engine.preferences.schema import LEDGER, ROW_GROUP_ROWS, read_table

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # classes of the marks that turn the direction


def test_entries_come_back_with_their_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        ledger.add("broken_json", source="a.jsonl", row=3, detail="{")
        ledger.add("empty_prompt", source="a.jsonl", row=4, pair_id="ab")
        ledger.add("broken_json", source="b.jsonl", row=1)
    assert (ledger.total, dict(ledger.counts)) == (3, {"broken_json": 2, "empty_prompt": 1})
    rows = read_table(ledger.path, LEDGER).to_pylist()
    assert rows[0] == {"source": "a.jsonl", "row": 3, "pair_id": "", "reason": "broken_json", "detail": "{"}
    assert [row["pair_id"] for row in rows] == ["", "ab", ""]


def test_an_empty_ledger_is_a_table_of_no_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.parquet"):
        pass
    assert read_table(tmp_path / "ledger.parquet", LEDGER).num_rows == 0


def test_a_long_ledger_is_written_in_row_groups(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        for row in range(ROW_GROUP_ROWS + 1):
            ledger.add("cut", source="a", row=row)
    with pq.ParquetFile(ledger.path) as file:
        assert [file.metadata.row_group(group).num_rows for group in range(2)] == [ROW_GROUP_ROWS, 1]


def test_a_ledger_left_by_an_error_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Ledger(tmp_path / "ledger.parquet") as ledger:
        ledger.add("cut", source="a", row=1)
        raise RuntimeError
    assert read_table(ledger.path, LEDGER).num_rows == 1


def test_a_detail_is_clipped_and_half_a_character_is_escaped(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        ledger.add("not_unicode", source="\udcff", row=1, detail="\ud800" + "x" * 1_000)
    row = read_table(ledger.path, LEDGER).to_pylist()[0]
    assert row["source"] == "\\udcff"
    assert row["detail"].startswith("\\ud800xxx") and row["detail"].endswith("x…") and len(row["detail"]) < 220
    assert shown("短") == "短"


@given(st.text(max_size=30) | st.text("\x00\x07\t\r\x1b\x7f\x9b\u202e\u2066\u2028\udcff[31m a", max_size=30))
def test_nothing_that_is_shown_acts_on_a_terminal(text: str) -> None:
    written = shown(text)
    kinds = {unicodedata.category(character) for character in written}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(character) for character in written} & TURNS


def test_escapes_say_what_was_there_and_other_text_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        ledger.add("broken_json", source="a\nb.jsonl", row=1, detail="\x1b[2J\x9b1m\u202egnp.exe\t\x00 naïve 🙂 שלום")
    row = read_table(ledger.path, LEDGER).to_pylist()[0]
    assert row["source"] == "a\\nb.jsonl"
    assert row["detail"] == "\\x1b[2J\\x9b1m\\u202egnp.exe\\t\\x00 naïve 🙂 שלום"


def test_a_budget_allows_its_share_and_not_one_row_more() -> None:
    check_budget(5, 100, 0.05, {"cut": 5}, "download", Path("ledger.parquet"))
    with pytest.raises(DataError, match=r"6 of 100 rows \(6\.0%\)") as caught:
        check_budget(6, 100, 0.05, {"cut": 1, "empty_prompt": 5}, "download", Path("some/ledger.parquet"))
    assert caught.value.found == "5 × empty_prompt, 1 × cut"
    assert caught.value.where == "some/ledger.parquet"
    assert "download.refused_share" in caught.value.fix


@pytest.mark.parametrize(("refused", "total"), [(0, 0), (7, 7)])
def test_no_budget_allows_that_nothing_is_left(refused: int, total: int) -> None:
    with pytest.raises(DataError, match="no row left"):
        check_budget(refused, total, 1.0, {"cut": refused} if refused else {}, "tokenize", Path("ledger.parquet"))
