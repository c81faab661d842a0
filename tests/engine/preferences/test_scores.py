import math
import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.dpo.logps import ld_weights
from engine.errors import DataError
from engine.models.forward import RowLogps
from engine.models.scoring import PairScores
from engine.preferences import schema as schema_module
from engine.preferences import scores as scores_module
from engine.preferences.pairs import TokenPair, TokenRow
from engine.preferences.schema import SCORES, read_table
from engine.preferences.scores import ref_logps, row_key, scored_rows, scores_of, write_scores

SIDE = st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=12)


def score(number):
    return PairScores([-0.5, -number / 4], [-float(number)], -number / 4 - 0.5, -float(number))


def write(path, pairs, scores):
    keys = [row_key(pair) for pair in pairs]
    write_scores(path, [pair.pair_id for pair in pairs], keys, scored_rows(keys, scores))


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(9)


def pair_of(*sides):
    rows = [TokenRow(np.array([i for i, _ in side], np.int32), np.array([m for _, m in side])) for side in sides]
    return TokenPair("id", "source", *rows)


@given(chosen=SIDE, rejected=SIDE, other=SIDE)
def test_a_row_has_the_key_of_its_ids_and_masks_and_of_nothing_else(chosen, rejected, other):
    key = row_key(pair_of(chosen, rejected))
    named = TokenPair("another id", "another source", *pair_of(chosen, rejected).rows)
    assert row_key(named) == key
    assert len(key) == 16
    assert (row_key(pair_of(chosen, other)) == key) == (other == rejected)
    assert (row_key(pair_of(other, rejected)) == key) == (other == chosen)
    assert (row_key(pair_of(rejected, chosen)) == key) == (chosen == rejected)
    turned = [(token, not scored) for token, scored in rejected]
    assert row_key(pair_of(chosen, turned)) != key


@given(both=SIDE, cut=st.integers(1, 11))
def test_what_one_side_ends_with_is_not_what_the_other_begins_with(both, cut):
    if cut < len(both) - 1:
        assert row_key(pair_of(both[:cut], both[cut:])) != row_key(pair_of(both[: cut + 1], both[cut + 1 :]))


def test_what_was_written_is_read_back(tmp_path, pairs):
    write(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)])
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
    write(tmp_path / "s.parquet", pairs[:1], [PairScores([exact], [exact], exact, exact)])
    ref = ref_logps(tmp_path / "s.parquet", pairs[:1])
    assert ref.dtype == np.float64
    assert ref.tolist() == [[exact, exact]]


def test_scores_are_joined_by_pair_id_and_never_by_position(tmp_path, pairs):
    numbers = list(range(9))
    write(tmp_path / "in_order.parquet", pairs, [score(number) for number in numbers])
    random.Random(1).shuffle(numbers)
    write(tmp_path / "shuffled.parquet", [pairs[at] for at in numbers], [score(at) for at in numbers])
    in_order, shuffled = (ref_logps(tmp_path / f"{name}.parquet", pairs) for name in ("in_order", "shuffled"))
    assert np.array_equal(in_order, shuffled)
    assert in_order.tolist() == [[score(at).chosen_logps, score(at).rejected_logps] for at in range(9)]
    assert ref_logps(tmp_path / "shuffled.parquet", pairs[4:2:-1]).tolist() == in_order[[4, 3]].tolist()


def test_under_ld_dpo_the_tail_of_the_longer_side_counts_alpha(tmp_path, pairs):
    write(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)][::-1])
    ref = ref_logps(tmp_path / "s.parquet", pairs[2:4], ld_alpha=0.5)
    assert ref.dtype == np.float64
    assert ref.tolist() == [[-0.5 - 6 / 8, -6.0], [-0.5 - 5 / 8, -5.0]]


TOKENS_OF = st.lists(st.floats(-90, 0, width=32), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TOKENS_OF, TOKENS_OF), min_size=1, max_size=9), alpha=st.floats(0, 1))
def test_stored_tokens_are_weighted_as_the_policys_are(tmp_path, pairs, rows, alpha):
    scores = [PairScores(chosen, rejected, math.fsum(chosen), math.fsum(rejected)) for chosen, rejected in rows]
    write(tmp_path / "s.parquet", pairs[: len(rows)], scores)
    ref = ref_logps(tmp_path / "s.parquet", pairs[: len(rows)], ld_alpha=alpha)
    assert ref == pytest.approx(np.array([each.sums(alpha) for each in scores]), rel=1e-12, abs=1e-12)
    counts = [len(side) for sides in rows for side in sides]
    policys = RowLogps(torch.tensor([token for sides in rows for side in sides for token in side]), counts)
    assert ref.ravel() == pytest.approx(policys.sums(ld_weights(counts, alpha)).numpy(), rel=1e-12, abs=1e-12)


def test_the_scores_of_a_pair_are_found_by_its_key_wherever_they_stand(tmp_path, pairs):
    keys = [row_key(pair) for pair in pairs]
    rows = scored_rows(keys[::-1], [score(number) for number in range(9)][::-1])
    assert scores_of(rows, keys[6]) == (-2.0, -6.0)
    write_scores(tmp_path / "s.parquet", ["a", "b", "a too"], [keys[5], keys[0], keys[5]], rows)
    table = read_table(tmp_path / "s.parquet", SCORES)
    assert table["pair_id"].to_pylist() == ["a", "b", "a too"]
    assert table["ref_rejected_logps"].to_pylist() == [-5.0, 0.0, -5.0]
    with pytest.raises(KeyError):
        write_scores(tmp_path / "s.parquet", ["x"], [b"unknown key here"], rows)


def test_a_pair_without_a_score_is_an_error_that_names_it(tmp_path, pairs):
    write(tmp_path / "s.parquet", pairs[:7], [score(number) for number in range(7)])
    with pytest.raises(DataError, match="2 of 9 pairs have no reference score") as caught:
        ref_logps(tmp_path / "s.parquet", pairs)
    assert caught.value.found == "pair id7"


def test_many_scores_are_written_in_row_groups(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(scores_module, "ROW_GROUP_ROWS", 4)
    write(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)])
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 3
    assert ref_logps(tmp_path / "s.parquet", pairs)[8].tolist() == [-2.5, -8.0]


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_the_sums_of_many_rows_are_taken_a_batch_at_a_time(tmp_path, pairs, monkeypatch, alpha):
    write(tmp_path / "s.parquet", pairs, [score(number) for number in range(9)])
    whole = ref_logps(tmp_path / "s.parquet", pairs, alpha)
    read, held = scores_module.read_batches, []

    def watched(*arguments):
        for batch in read(*arguments):
            held.append(len(batch))
            yield batch

    monkeypatch.setattr(schema_module, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(scores_module, "read_batches", watched)
    assert np.array_equal(ref_logps(tmp_path / "s.parquet", pairs, alpha), whole)
    assert held == [4, 4, 1]


def test_the_slow_half_of_pyarrow_is_not_loaded_before_scores_are_read() -> None:
    code = "import sys, engine.preferences.scores; sys.exit('pyarrow.compute' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
