import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.preferences.schema import (
    LEDGER,
    PAIRS,
    ROW_GROUP_ROWS,
    SCORES,
    TOKENS,
    read_batches,
    read_rows,
    read_table,
    writer,
)

ENTRY = {"source": "s", "row": 1, "pair_id": "", "reason": "broken_json", "detail": "好"}
PAIR = {
    "pair_id": "a",
    "prompt": [{"role": "user", "content": "q"}],
    "chosen": "c",
    "rejected": "r",
    "source": "s",
    "row": 2**40,
}


@pytest.mark.parametrize(("schema", "row"), [(LEDGER, ENTRY), (PAIRS, PAIR)], ids=["ledger", "pairs"])
def test_rows_come_back_as_written(tmp_path, schema, row):
    with writer(tmp_path / "t", schema) as out:
        out.write_table(pa.Table.from_pylist([row], schema=schema))
    assert list(read_rows(tmp_path / "t", schema)) == [[row]]
    assert read_table(tmp_path / "t", schema).to_pylist() == [row]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in "ab":
        with writer(tmp_path / name, PAIRS) as out:
            out.write_table(pa.Table.from_pylist([PAIR] * 3, schema=PAIRS))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_the_columns_asked_for_are_read(tmp_path):
    with writer(tmp_path / "t", LEDGER) as out:
        out.write_table(pa.Table.from_pylist([ENTRY], schema=LEDGER))
    assert next(read_rows(tmp_path / "t", LEDGER, ["reason"])) == [{"reason": "broken_json"}]
    assert read_table(tmp_path / "t", LEDGER, ["row"]).column_names == ["row"]


def test_rows_are_read_a_batch_at_a_time(tmp_path):
    with writer(tmp_path / "t", LEDGER) as out:
        out.write_table(pa.Table.from_pylist([ENTRY] * (ROW_GROUP_ROWS + 1), schema=LEDGER))
    assert [len(rows) for rows in read_rows(tmp_path / "t", LEDGER)] == [ROW_GROUP_ROWS, 1]
    assert [batch.num_rows for batch in read_batches(tmp_path / "t", LEDGER)] == [ROW_GROUP_ROWS, 1]
    assert next(read_batches(tmp_path / "t", LEDGER, ["row"])).schema.names == ["row"]


def test_a_file_is_never_held_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.preferences.schema.ROW_GROUP_ROWS", 500)
    letters = np.random.default_rng(0).integers(97, 123, (20, 500, 200), dtype=np.uint8)
    with writer(tmp_path / "t", LEDGER) as out:
        for group in letters:
            rows = [ENTRY | {"detail": row.tobytes().decode()} for row in group]
            out.write_table(pa.Table.from_pylist(rows, schema=LEDGER))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_batches(tmp_path / "t", LEDGER)]
    assert len(held) == 20 and max(held) < (tmp_path / "t").stat().st_size / 2


def test_a_column_of_another_type_is_named_with_both_types(tmp_path):
    pq.write_table(pa.Table.from_pylist([ENTRY | {"row": "one"}]), tmp_path / "t")
    with pytest.raises(DataError, match=r"row: int64(.|\n)*row: string"):
        read_table(tmp_path / "t", LEDGER)


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist([ENTRY], schema=LEDGER).drop_columns(["reason"]), tmp_path / "t")
    with pytest.raises(DataError, match="expected: reason: string"):
        next(read_rows(tmp_path / "t", LEDGER))


def test_columns_in_another_order_are_refused(tmp_path):
    table = pa.Table.from_pylist([ENTRY], schema=LEDGER)
    pq.write_table(table.select(table.column_names[::-1]), tmp_path / "t")
    with pytest.raises(DataError, match="in another order"):
        read_table(tmp_path / "t", LEDGER)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", None], ids=["empty", "torn", "missing"])
def test_a_file_that_is_no_parquet_is_a_data_error_with_its_path(tmp_path, content):
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet"):
        read_table(path, TOKENS)


def test_ids_are_int32_token_scores_float32_and_sums_float64():
    assert TOKENS.field("chosen_input_ids").type == pa.list_(pa.int32())
    assert TOKENS.field("chosen_label_mask").type == pa.list_(pa.bool_())
    assert SCORES.field("ref_chosen_token_logps").type == pa.list_(pa.float32())
    assert SCORES.field("ref_chosen_logps").type == pa.float64()
