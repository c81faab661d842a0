from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.workload import EOS, FIRST_WORD, PROFILES, Lengths, Profile, make_pairs, prompt_length, write_pairs
from engine.preferences.pairs import load_pairs


@given(
    profile=st.builds(
        Profile,
        st.just("any"),
        st.builds(Lengths, st.floats(2, 60), st.floats(0, 2), st.just(1), st.integers(1, 30)),
        st.builds(Lengths, st.floats(2, 60), st.floats(0, 2), st.just(1), st.integers(1, 80)),
        st.integers(32, 64),
    ),
    seed=st.integers(0, 1_000),
)
def test_every_pair_shares_its_prompt_is_scored_on_both_sides_and_is_cut(profile: Profile, seed: int) -> None:
    for pair in make_pairs(4, profile, vocabulary=50, seed=seed):
        prompt = prompt_length(pair)
        assert (pair.chosen.input_ids[:prompt] == pair.rejected.input_ids[:prompt]).all()
        for row in pair.rows:
            assert len(row) <= profile.max_length
            assert 0 < row.scored_tokens == len(row) - prompt
            assert row.label_mask[prompt:].all()
            assert (row.input_ids[:-1] >= FIRST_WORD).all()
            assert row.input_ids[-1] == EOS or len(row) == profile.max_length


def test_fewer_pairs_are_the_first_of_more() -> None:
    few, many = (make_pairs(count, PROFILES["short"], 100) for count in (3, 9))
    assert all((here.chosen.input_ids == there.chosen.input_ids).all() for here, there in zip(few, many, strict=False))


def test_the_profiles_have_the_lengths_they_are_named_for() -> None:
    short, long = (make_pairs(300, PROFILES[name], 1_000) for name in ("short", "long"))
    assert 45 < np.median([prompt_length(pair) for pair in short]) < 75
    assert max(pair.length for pair in short) <= 256
    assert min(prompt_length(pair) for pair in long) >= 500
    assert all(100 <= row.scored_tokens <= 251 for pair in long for row in pair.rows)


def test_pairs_come_back_from_their_table_as_they_were(tmp_path: Path) -> None:
    pairs = make_pairs(5, PROFILES["short"], 100)
    write_pairs(tmp_path / "pairs.parquet", pairs)
    found = load_pairs(tmp_path / "pairs.parquet")
    assert [pair.pair_id for pair in found] == [pair.pair_id for pair in pairs]
    for here, there in zip(found, pairs, strict=True):
        assert here.rejected.input_ids.tolist() == there.rejected.input_ids.tolist()
        assert here.chosen.label_mask.tolist() == there.chosen.label_mask.tolist()


@pytest.mark.parametrize("name", PROFILES)
def test_no_prompt_fills_a_row(name: str) -> None:
    assert PROFILES[name].prompt.high < PROFILES[name].max_length
