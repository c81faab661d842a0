import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.preferences.schema import PAIRS, TOKENS, writer
from engine.reports.lengths import Lengths, in_characters, in_tokens, with_cut
from engine.reports.sampled import sampled

TEXTS = st.text(max_size=12)
MESSAGES = st.lists(TEXTS, min_size=1, max_size=4)


def table(path, schema, rows, group=5_000):
    with writer(path, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=group)
    return sampled(path)


def lengths(chosen, rejected, turns=None):
    chosen, rejected = np.array(chosen), np.array(rejected)
    return Lengths(np.full(len(chosen), 7), chosen, rejected, None if turns is None else np.array(turns))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(MESSAGES, TEXTS, TEXTS), min_size=1, max_size=7))
def test_characters_are_those_of_each_response_and_of_all_messages_of_a_prompt(tmp_path_factory, pairs):
    rows = [
        {
            "prompt": [{"role": "user", "content": said} for said in messages],
            "chosen": chosen,
            "rejected": rejected,
        }
        for messages, chosen, rejected in pairs
    ]
    found = in_characters(table(tmp_path_factory.mktemp("t") / "t.parquet", PAIRS, rows, group=2))
    assert found.prompts.tolist() == [sum(map(len, messages)) for messages, _, _ in pairs]
    assert found.turns.tolist() == [len(messages) for messages, _, _ in pairs]
    assert found.chosen.tolist() == [len(chosen) for _, chosen, _ in pairs]
    assert found.rejected.tolist() == [len(rejected) for _, _, rejected in pairs]


def test_a_row_without_texts_has_no_length(tmp_path):
    found = in_characters(table(tmp_path / "t.parquet", PAIRS, [{"prompt": None, "chosen": None, "rejected": "abc"}]))
    assert (found.prompts.tolist(), found.chosen.tolist(), found.rejected.tolist()) == ([0], [0], [3])


def test_tokens_of_a_response_are_those_behind_the_prompt(tmp_path):
    rows = [{"chosen_input_ids": [1] * 5, "rejected_input_ids": [1] * 9, "prompt_length": 3}]
    found = in_tokens(table(tmp_path / "t.parquet", TOKENS, rows))
    assert (found.prompts.tolist(), found.chosen.tolist(), found.rejected.tolist()) == ([3], [2], [6])


def test_the_table_says_how_long_half_of_them_are_and_nearly_all():
    told = lengths(range(1, 101), [5] * 100).table("tokens")
    assert "| chosen | 50 | 95 |" in told or "| chosen | 51 | 95 |" in told
    assert "| prompts | 7 | 7 |" in told


def test_it_is_said_which_side_is_longer_since_a_model_may_learn_that():
    assert lengths([3, 1, 2, 2], [1, 2, 1, 2]).words() == (
        "The chosen response is the longer one in 50.0% of the pairs, and the shorter one in 25.0%."
    )


@pytest.mark.parametrize(("turns", "told"), [([1, 1], False), ([1, 3], True)])
def test_dialogues_are_told_of_where_there_are_some(turns, told):
    words = lengths([1, 2], [2, 1], turns).words()
    assert ("50.0% of the prompts are dialogues of several messages." in words) == told


def test_the_cut_is_marked_where_it_is_near_and_does_not_squeeze_the_lengths_where_it_is_far():
    near, far = (with_cut("rows", "rows", np.array([50, 90, 100]), cut, y="rows").alt for cut in (100, 4_096))
    assert "cut at 100" in near
    assert "cut at" not in far


@pytest.mark.parametrize("cut", [None, "256", [1]])
def test_a_cut_that_is_no_number_is_not_marked(cut):
    assert "cut" not in with_cut("rows", "rows", np.array([5, 9]), cut, y="rows").alt


def test_chosen_and_rejected_lie_over_each_other():
    picture = lengths([1, 2, 3], [4, 5, 6]).responses("how long", "tokens")
    assert "chosen: 3" in picture.alt and "rejected: 3" in picture.alt


def test_the_cut_is_marked_where_rows_reach_it_even_if_few_do():
    rows = np.append(np.linspace(10, 300, 10_000).astype(int), [2_048] * 3)
    reached, beyond = (with_cut("rows", "rows", rows, cut, y="rows").alt for cut in (2_048, 2_100))
    assert "cut at 2,048" in reached and "further out" not in reached
    assert "cut at" not in beyond and "further out than is drawn, up to 2,048" in beyond


@pytest.mark.parametrize("longest", [57, 67, 5_000])
def test_the_longest_is_told_whatever_is_drawn(longest):
    rows = np.append(np.linspace(30, 57, 1_000).astype(int), longest)
    assert f"from 30 to {longest:,}" in with_cut("rows", "rows", rows, 64, y="rows").alt
