import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.reports.sampled import sampled


def written(path, rows, group):
    pq.write_table(pa.table({"n": range(rows), "text": ["x"] * rows}), path, row_group_size=group)
    return path


def test_a_small_table_is_read_whole_and_nothing_is_said(tmp_path):
    found = sampled(written(tmp_path / "t.parquet", 100, 30))
    assert (found.rows, found.of, found.words) == (100, 100, "")
    assert [n for rows in found.tables(["n"]) for n in rows["n"].to_pylist()] == list(range(100))


def test_of_a_large_table_evenly_spaced_groups_are_read_and_it_is_said(tmp_path):
    found = sampled(written(tmp_path / "t.parquet", 1_000, 10), most=50)
    assert found.groups == (0, 24, 49, 74, 99)
    assert found.words == "Of 1,000 pairs, 50 were looked at, in evenly spaced groups."
    assert sum(rows.num_rows for rows in found.tables(["n"])) == 50


@settings(deadline=None)
@given(rows=st.integers(0, 200), group=st.integers(1, 60), most=st.integers(1, 120))
def test_no_more_rows_are_read_than_allowed_but_for_one_group(tmp_path_factory, rows, group, most):
    found = sampled(written(tmp_path_factory.mktemp("t") / "t.parquet", rows, group), most)
    assert found.rows <= max(most, group)
    assert found.of == rows
    assert bool(found.rows) == bool(rows)


def test_a_row_is_found_by_its_place_among_those_that_are_looked_at(tmp_path):
    found = sampled(written(tmp_path / "t.parquet", 1_000, 10), most=50)
    assert found.row(0, ["n"]) == {"n": 0}
    assert found.row(10, ["n"]) == {"n": 240}
    assert found.row(49, ["n"]) == {"n": 999}
    with pytest.raises(IndexError):
        found.row(50, ["n"])


def test_a_table_that_is_none_or_lacks_a_column_is_an_error_that_says_so(tmp_path):
    path = written(tmp_path / "t.parquet", 10, 5)
    with pytest.raises(DataError, match="lacks columns"):
        list(sampled(path).tables(["n", "score"]))
    path.write_bytes(b"PAR1 and something else")
    with pytest.raises(DataError, match="cannot be read"):
        sampled(path)
    with pytest.raises(DataError, match="cannot be read"):
        sampled(tmp_path / "gone.parquet")


def test_a_column_whose_bytes_were_changed_is_an_error_that_says_so(tmp_path):
    path = written(tmp_path / "t.parquet", 5_000, 5_000)
    found, content = sampled(path), bytearray(path.read_bytes())
    content[10:400] = b"\xff" * 390
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        list(found.tables(["n"]))
