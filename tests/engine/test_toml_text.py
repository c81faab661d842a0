import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.toml_text import assignment, to_toml

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=10
)


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_reads_back_the_same(tables):
    assert tomllib.loads(to_toml(tables)) == tables


def test_a_table_is_written_as_people_write_it():
    train = {"beta": 0.1, "rate": 5e-7, "lora": {"rank": 4}, "none": None, "of": [None, 1]}
    assert to_toml({"profile": "demo", "train": train}) == (
        'profile = "demo"\n\n[train]\nbeta = 0.1\nrate = 5e-07\nof = [1]\n\n[train.lora]\nrank = 4\n'
    )


def test_not_a_number_has_a_word_in_toml():
    assert to_toml({"a": float("nan"), "b": float("-inf")}) == "a = nan\nb = -inf\n"


def test_nothing_inside_a_list_of_tables_is_lost_but_none():
    assert to_toml({"a": [{"b": None}, {"b": 1, "c d": "x"}]}) == 'a = [{}, { b = 1, "c d" = "x" }]\n'


def test_a_value_that_toml_does_not_have_is_refused():
    with pytest.raises(TypeError, match="no form in TOML"):
        to_toml({"a": b"bytes"})


def test_an_assignment_is_one_line_whatever_the_value_is():
    value = {"rank": 16, "targets": ["q", "v"]}
    line = assignment("lora", value)
    assert "\n" not in line
    assert tomllib.loads(line) == {"lora": value}
