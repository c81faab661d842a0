import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.pairs import TokenRow, load_pairs, shared_length
from engine.preferences.schema import PAIRS, TOKENS, writer


def row(number, prompt, chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    columns = {f"{side}_input_ids": [*prompt, *ids] for side, ids in sides.items()}
    columns |= {f"{side}_label_mask": [False] * len(prompt) + [True] * len(ids) for side, ids in sides.items()}
    texts = {"prompt": "p", "chosen": "c", "rejected": "r", "prompt_id": "q", "source": f"file {number}"}
    cuts = {"prompt_cut_tokens": 0, "chosen_cut_tokens": 0, "rejected_cut_tokens": 0}
    return columns | texts | cuts | {"pair_id": f"id{number}", "prompt_length": len(prompt), "row": number}


def written(path, rows, group_rows=1000, schema=TOKENS):
    with writer(path, schema) as file:
        for begin in range(0, len(rows), group_rows):
            file.write_table(pa.Table.from_pylist(rows[begin : begin + group_rows], schema=schema))
    return path


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ids, ids, ids), max_size=7), st.integers(1, 4))
def test_pairs_are_those_of_the_table_in_its_order_whatever_its_row_groups(tmp_path_factory, content, group_rows):
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pairs = load_pairs(written(path, [row(number, *each) for number, each in enumerate(content)], group_rows))
    assert [pair.pair_id for pair in pairs] == [f"id{number}" for number in range(len(content))]
    for number, (pair, (prompt, chosen, rejected)) in enumerate(zip(pairs, content, strict=True)):
        assert pair.source == f"file {number}"
        for side, response in ((pair.chosen, chosen), (pair.rejected, rejected)):
            assert side.input_ids.tolist() == [*prompt, *response]
            assert side.label_mask.tolist() == [False] * len(prompt) + [True] * len(response)
            assert (len(side), side.scored_tokens) == (len(prompt) + len(response), len(response))
        assert pair.rows == (pair.chosen, pair.rejected)
        assert pair.length == len(prompt) + max(len(chosen), len(rejected))


few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(few_ids, st.lists(few_ids, min_size=1, max_size=4))
def test_what_rows_share_is_their_longest_common_beginning(prompt, responses):
    rows = [[*prompt, *response] for response in responses]
    expected = next(
        (at for at in range(min(map(len, rows))) if len({each[at] for each in rows}) > 1), min(map(len, rows))
    )
    made = [TokenRow(np.array(each, dtype=np.int32), np.ones(len(each), dtype=bool)) for each in rows]
    assert shared_length(made) == expected >= len(prompt)


def test_ids_take_four_bytes_and_marks_one(tmp_path):
    [pair] = load_pairs(written(tmp_path / "pairs.parquet", [row(0, [1], [5], [6, 7])]))
    assert (pair.chosen.input_ids.dtype, pair.chosen.label_mask.dtype) == ("int32", "bool")


def test_another_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="other columns than it should"):
        load_pairs(written(tmp_path / "pairs.parquet", [], schema=PAIRS))


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_a_pair_knows_its_prompt_and_whether_any_part_of_it_was_cut(tmp_path, part):
    whole, cut = row(0, [1], [2], [3]), row(1, [1], [2], [3]) | {f"{part}_cut_tokens": 2, "prompt_id": "other"}
    pairs = load_pairs(written(tmp_path / "pairs.parquet", [whole, cut]))
    assert [(pair.prompt_id, pair.truncated) for pair in pairs] == [("q", False), ("other", True)]
