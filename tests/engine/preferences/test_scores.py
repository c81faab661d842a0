import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.models.scoring import PairScores
from engine.preferences import scores as scores_module
from engine.preferences.schema import SCORES, read_table
from engine.preferences.scores import ref_logps, write_scores


def score(number):
    return PairScores([-0.5, -number / 4], [-float(number)], -number / 4 - 0.5, -float(number))


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(9)


def test_what_was_written_is_read_back(tmp_path, pairs):
    write_scores(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)])
    rows = read_table(tmp_path / "s.parquet", SCORES).to_pylist()
    assert rows[3] == {
        "pair_id": "id3",
        "ref_chosen_token_logps": [-0.5, -0.75],
        "ref_rejected_token_logps": [-3.0],
        "ref_chosen_logps": -1.25,
        "ref_rejected_logps": -3.0,
    }


def test_a_sum_keeps_its_float64(tmp_path, pairs):
    exact = -1261.0 - 2**-40
    write_scores(tmp_path / "s.parquet", pairs[:1], [PairScores([exact], [exact], exact, exact)])
    ref = ref_logps(tmp_path / "s.parquet", pairs[:1])
    assert ref.dtype == np.float64
    assert ref.tolist() == [[exact, exact]]


def test_scores_are_joined_by_pair_id_and_never_by_position(tmp_path, pairs):
    numbers = list(range(9))
    write_scores(tmp_path / "in_order.parquet", pairs, [score(number) for number in numbers])
    random.Random(1).shuffle(numbers)
    write_scores(tmp_path / "shuffled.parquet", [pairs[at] for at in numbers], [score(at) for at in numbers])
    in_order, shuffled = (ref_logps(tmp_path / f"{name}.parquet", pairs) for name in ("in_order", "shuffled"))
    assert np.array_equal(in_order, shuffled)
    assert in_order.tolist() == [[score(at).chosen_logps, score(at).rejected_logps] for at in range(9)]
    assert ref_logps(tmp_path / "shuffled.parquet", pairs[4:2:-1]).tolist() == in_order[[4, 3]].tolist()


def test_a_pair_without_a_score_is_an_error_that_names_it(tmp_path, pairs):
    write_scores(tmp_path / "s.parquet", pairs[:7], [score(number) for number in range(7)])
    with pytest.raises(DataError, match="2 of 9 pairs have no reference score") as caught:
        ref_logps(tmp_path / "s.parquet", pairs)
    assert caught.value.found == "pair id7"


def test_many_scores_are_written_in_row_groups(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(scores_module, "ROW_GROUP_ROWS", 4)
    write_scores(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)])
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 3
    assert ref_logps(tmp_path / "s.parquet", pairs)[8].tolist() == [-2.5, -8.0]
