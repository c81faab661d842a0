import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.drift import LENGTHS, NAMED_SOURCES, OTHERS, Drift, Tally, changed_pairs, drifts
from engine.preferences.schema import TOKENS, writer
from engine.store import Artifact, Store


def tally(sources: dict[str, int], lengths: list[int] = []) -> dict[str, Any]:  # noqa: B006, never changed
    made = Tally()
    names = [name for name, count in sources.items() for _ in range(count)]
    made.add_sources(pa.table({"source": pa.array(names, pa.string())}))
    made.add_lengths(np.array(lengths or [5, 50], dtype=np.int64))
    return json.loads(json.dumps(made.records()))


def by(dimension: str, before: dict[str, Any], now: dict[str, Any]) -> Drift:
    (found,) = [each for each in drifts(before, now) if each.dimension == dimension]
    return found


@pytest.mark.parametrize(
    ("tokens", "bin"),
    [(1, "1–4"), (4, "1–4"), (5, "5–8"), (8, "5–8"), (9, "9–16"), (4096, "2049–4096"), (4097, "over 4096")],
)
def test_a_length_is_counted_in_the_bin_whose_name_says_so(tokens, bin):
    counts = tally({"a": 1}, [tokens])["response_lengths"]
    assert counts.pop(bin) == 1 and set(counts.values()) == {0}


def test_the_most_frequent_sources_are_named_and_the_others_counted():
    found = tally({f"file{number:02}": 100 - number for number in range(30)})
    assert list(found["sources"]) == [f"file{number:02}" for number in range(NAMED_SOURCES)]
    assert found["other_sources"] == sum(100 - number for number in range(NAMED_SOURCES, 30))


def test_a_tally_over_parts_is_that_of_the_whole():
    parts, lengths = Tally(), np.arange(1, 6000)
    for names, some in ((["a", "b", None], lengths[:7]), (["b", "b"], lengths[7:]), ([], lengths[:0])):
        parts.add_sources(pa.table({"source": pa.array(names, pa.string())}))
        parts.add_lengths(some)
    assert parts.records()["sources"] == {"b": 3, "": 1, "a": 1}
    assert sum(parts.records()["response_lengths"].values()) == 5999


COUNTS = st.dictionaries(st.text(max_size=3), st.integers(1, 30), min_size=1, max_size=40)


@given(COUNTS, COUNTS)
def test_the_distance_is_a_metric_between_0_and_1_and_shares_sum_to_one(then, now):
    there, back = by("source", tally(then), tally(now)), by("source", tally(now), tally(then))
    assert there.distance == pytest.approx(back.distance)
    assert 0 <= there.distance <= 1 + 1e-9
    assert sum(old for _, old, _ in there.shares) == pytest.approx(1)
    assert sum(new for _, _, new in there.shares) == pytest.approx(1)
    assert by("source", tally(then), tally(then)).distance == 0


@given(COUNTS, COUNTS)
def test_what_the_tally_folds_away_never_makes_the_distance_larger(then, now):
    total, size = sum(then.values()), sum(now.values())
    real = 0.5 * sum(abs(then.get(name, 0) / total - now.get(name, 0) / size) for name in {*then, *now})
    assert by("source", tally(then), tally(now)).distance <= real + 1e-9


def test_a_source_that_falls_away_is_seen_with_its_share():
    found = by("source", tally({"a": 800, "b": 200}), tally({"a": 1000}))
    assert (found.distance, found.moved, found.word) == (pytest.approx(0.2), True, "moved")
    assert sorted(found.shares) == [("a", 0.8, 1.0), ("b", 0.2, 0.0)]


def test_a_source_that_one_night_may_hide_among_its_others_is_not_called_gone():
    many = {f"file{number:02}": 100 - number for number in range(30)}
    found = by("source", tally(many), tally(many | {"file29": 90}))
    assert found.distance < 0.01
    assert OTHERS in [name for name, _, _ in found.shares]


def test_a_folder_that_grows_by_a_file_each_night_has_a_new_source_and_did_not_move():
    found = by("source", tally({"n1.jsonl": 500}), tally({"n1.jsonl": 500, "n2.jsonl": 1200}))
    assert found.distance > 0.5 and not found.moved
    assert found.word == "new source n2.jsonl, 1,200 pairs"
    two = by("source", tally({"a": 500}), tally({"a": 510, "b": 300, "c": 300}))
    assert (two.word, two.moved) == ("new sources, 600 pairs", False)


@pytest.mark.parametrize(
    "now",
    [
        {"a": 499, "b": 500, "new": 300},  # one shrank
        {"a": 500, "new": 800},  # one is gone
        {"a": 5000, "b": 500, "new": 300},  # one outgrew the other
    ],
)
def test_a_new_source_excuses_nothing_else_that_moved(now):
    found = by("source", tally({"a": 500, "b": 500}), tally(now))
    assert found.moved and found.word == "moved"


def test_new_lengths_beside_the_old_ones_are_a_move_though_a_new_source_brought_them():
    then, now = tally({"a": 400}, [3] * 800), tally({"a": 400, "b": 400}, [3] * 800 + [300] * 800)
    assert by("source", then, now).added == {"b": 400}
    assert by("response length", then, now).moved


@pytest.mark.parametrize("old", [{"old": 100}, {f"old{number:02}": 100 for number in range(NAMED_SOURCES)}])
def test_many_new_sources_are_told_as_such_though_the_tally_names_some_or_none_of_them(old):
    found = by("source", tally(old), tally(old | {f"new{number:02}": 50 for number in range(40)}))
    assert (found.word, found.moved) == ("new sources, 2,000 pairs", False)


def test_a_few_new_pairs_among_many_are_no_drift():
    found = by("source", tally({"old": 10_000}), tally({"old": 10_000, "new": 200}))
    assert not found.moved and found.word == "much as it was"
    assert by("source", tally({"old": 10}), tally({"old": 10})).word == "as it was"


def test_chance_alone_is_called_drift_hardly_ever_and_its_size_is_foretold():
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        nights = [
            dict(zip("abcdef", random.multinomial(60, [0.3, 0.2, 0.2, 0.1, 0.1, 0.1]), strict=True)) for _ in "xy"
        ]
        found.append(by("source", *(tally({name: int(count) for name, count in each.items()}) for each in nights)))
    assert np.mean([each.distance for each in found]) == pytest.approx(
        np.mean([each.by_chance for each in found]), rel=0.1
    )
    assert np.mean([each.distance >= 0.1 for each in found]) > 0.5, "the threshold alone would call most of them drift"
    assert sum(each.moved for each in found) <= 1


def test_lengths_are_compared_though_the_sources_are_the_same():
    found = by("response length", tally({"a": 9}, [3] * 400), tally({"a": 9}, [3] * 300 + [300] * 100))
    assert found.moved and found.distance == pytest.approx(0.25)
    assert {name for name, _, _ in found.shares} == {"1–4", "257–512"} <= set(LENGTHS)


@pytest.mark.parametrize(
    "old",
    [
        {},
        {"sources": {"a": 1}},
        {"sources": {"a": "1"}, "other_sources": 0, "response_lengths": {"1–4": 2}},
        {"sources": [], "other_sources": 0, "response_lengths": {}},
        {"sources": {"a": -1}, "other_sources": 0, "response_lengths": {"1–4": 2}},
        {"sources": {}, "other_sources": 0, "response_lengths": {"1–4": 0}},
    ],
)
def test_a_manifest_without_a_tally_gives_no_drift(old):
    assert drifts(old, tally({"a": 1})) == [] == drifts(tally({"a": 1}), old)


def sealed(root: Path, key: str, ids: list[str]) -> Artifact:
    store = Store(root)
    work = store.work("tokenize", key, fresh=True)
    rows = [{"pair_id": each} for each in ids]
    with writer(work / "pairs.parquet", TOKENS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=TOKENS))
    return store.seal("tokenize", key, work, {"payload": {}, "metrics": {}})


@given(then=st.lists(st.integers(0, 9), max_size=12), now=st.lists(st.integers(0, 9), max_size=12))
def test_new_and_gone_pairs_are_counted_once_each_whatever_their_order(tmp_path_factory, then, now):
    root = tmp_path_factory.mktemp("store")
    before, tonight = (sealed(root, f"k{at}", [f"id{each}" for each in ids]) for at, ids in enumerate((then, now)))
    assert changed_pairs(before, tonight) == (len(set(now) - set(then)), len(set(then) - set(now)))


def test_a_table_that_is_gone_makes_the_change_unknown_but_the_same_content_needs_none(tmp_path):
    one, same = sealed(tmp_path, "k1", ["a"]), sealed(tmp_path, "k2", ["a"])
    other = sealed(tmp_path, "k3", ["b"])
    (one.path / "pairs.parquet").unlink()
    assert changed_pairs(one, other) is None is changed_pairs(other, one)
    assert changed_pairs(one, same) == (0, 0)
