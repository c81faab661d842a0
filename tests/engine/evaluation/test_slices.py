import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.slices import SHOWN, SOURCES, by_length, by_source, slices


def row(source="s", tokens=4, refuses=False, truncated=False):
    sides = {"chosen_scored_tokens": tokens // 2, "rejected_scored_tokens": tokens - tokens // 2}
    return {"source": source, "chosen_refuses": refuses, "truncated": truncated} | sides


def sliced(rows, right=None):
    columns = {name: np.array(right or [1.0] * len(rows)) for name in SHOWN}
    return slices(rows, columns, [str(number) for number in range(len(rows))], 0, {SHOWN[0]})


def told(found, kind):
    return {each["value"]: each["pairs"] for each in found if each["slice"] == kind}


def test_what_is_the_same_for_all_pairs_makes_no_slice():
    assert sliced([row()] * 5) == []


def test_a_slice_has_the_means_of_its_pairs_and_their_intervals():
    rows = [row("a"), row("b"), row("a"), row("a")]
    found = sliced(rows, [1.0, 0.0, 0.0, 1.0])
    assert [(each["slice"], each["value"], each["pairs"]) for each in found] == [("source", "a", 3), ("source", "b", 1)]
    assert found[0]["metrics"] == dict.fromkeys(SHOWN, pytest.approx(2 / 3))
    low, high = found[0]["intervals"]["eval_rewards/accuracies"]
    assert low < 2 / 3 < high
    assert "eval_rewards/margins" not in found[0]["intervals"]  # of three prompts
    assert found[1]["intervals"] == {}  # one prompt


def test_refusals_and_cut_pairs_are_told_apart():
    found = sliced([row(refuses=True), row(refuses=True, truncated=True), row(truncated=True), row(), row()])
    assert told(found, "chosen_refuses") == {"answers": 3, "refuses": 2}
    assert told(found, "truncated") == {"whole": 3, "cut": 2}


def test_the_rarest_sources_are_put_together_and_stand_last():
    rows = [row(f"s{number:02}") for number in range(SOURCES) for _ in range(2)] + [row("x"), row("y"), row("z")]
    found = told(sliced(rows), "source")
    assert list(found) == [*(f"s{number:02}" for number in range(SOURCES)), "others"]
    assert found["others"] == 3


def test_the_sources_are_the_same_whatever_the_order_of_the_pairs():
    sources = [f"s{number}" for number in range(20)]
    assert set(by_source(sources)) == set(by_source(sources[::-1]))


def test_a_third_is_a_third_where_all_lengths_differ():
    assert by_length([9, 1, 5, 2, 7, 3]) == [
        "longest third, over 5 tokens",
        "shortest third, up to 2 tokens",
        "middle third, up to 5 tokens",
        "shortest third, up to 2 tokens",
        "longest third, over 5 tokens",
        "middle third, up to 5 tokens",
    ]


@settings(deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=40))
def test_pairs_of_one_length_are_in_one_third_and_the_thirds_do_not_overlap(tokens):
    names = by_length(tokens)
    ranges = [[each for each, name in zip(tokens, names, strict=True) if name.startswith(third)]
              for third in ("shortest", "middle", "longest")]  # fmt: skip
    there = [each for each in ranges if each]
    assert sum(map(len, there)) == len(tokens)
    for below, above in itertools.pairwise(there):
        assert max(below) < min(above)
    found = told(sliced([row(tokens=each) for each in tokens]), "length")
    assert not found or (len(found) > 1 and sum(found.values()) == len(tokens) and min(found.values()) > 0)
