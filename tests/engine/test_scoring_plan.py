import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.models.forward import Forward
from engine.models.passes import Passes
from engine.models.scoring import score_pairs
from engine.preferences.score_store import ScoreStore
from engine.preferences.scores import row_key
from engine.scoring_plan import Scoring, as_shards, has_plan, scoring_folder

PASSES = Passes(Forward("packed", "fused"), 60, 0)
ASKED = {"layout": "auto", "score_batch_tokens": 60, "score_shard_tokens": 80}


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(24)


@pytest.fixture
def llama(make_llama):
    return make_llama()


@pytest.fixture
def scored(tmp_path):
    return ScoreStore(tmp_path / "scores").of({"policy": "abc"})


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


def begin(work, pairs, scored, asked=ASKED):
    return Scoring(scoring_folder(work), pairs, scored, asked)


def finish(scoring, model, stop_after=None, passes=PASSES):
    """Scores what is left; stops when so many pairs were told of. Returns the rows, and how many were told."""
    told = []

    def progress(done, tokens):
        told.append((done, tokens))
        if stop_after is not None and done >= stop_after:
            raise Stopped

    if scoring.unscored:
        passes = scoring.settle(lambda: passes)
        scoring.score(model, passes, progress)
    return scoring.rows().sort_by("row_key")


def counted(monkeypatch):
    """The pairs that went through the model since, in the order of their batches."""
    import engine.models.scoring as scoring_module

    seen, real = [], scoring_module.score_batch

    def score_batch(model, pairs, passes):
        seen.append([pair.pair_id for pair in pairs])
        return real(model, pairs, passes)

    monkeypatch.setattr(scoring_module, "score_batch", score_batch)
    return seen


def test_progress_tells_of_all_pairs_and_of_the_tokens_that_this_attempt_scored(work, pairs, scored, llama):
    def score(stop_after=99):
        told = []

        def progress(done, tokens):
            told.append((done, tokens))
            if done >= stop_after:
                raise Stopped

        scoring = begin(work, pairs, scored)
        with pytest.raises(Stopped) if stop_after < 99 else nullcontext():
            told.append(scoring.score(llama, scoring.settle(lambda: PASSES), progress))
        return told

    *first, last = score(stop_after=12)
    *rest, tokens = score()
    assert first[0] == (0, 0)
    assert [done for done, _ in first] == sorted(done for done, _ in first)
    assert rest[0][0] > 0, "shards that are there are no progress of this attempt"
    assert rest[0][1] == 0
    assert rest[-1] == (len(pairs), 0)
    assert sum(told for _, told in rest) == tokens
    whole = sum(len(row) for pair in pairs for row in pair.rows)
    assert 0 < tokens < whole <= tokens + sum(told for _, told in [*first, last])


def test_every_pair_gets_its_score_and_the_store_has_it(work, pairs, scored, llama):
    rows = finish(begin(work, pairs, scored), llama)
    expected = dict(zip(map(row_key, pairs), score_pairs(llama, pairs, PASSES), strict=True))
    assert rows.num_rows == len(pairs)
    for row in rows.to_pylist():
        assert row["ref_chosen_logps"] == pytest.approx(expected[row["row_key"]].chosen_logps, abs=1e-4)
        assert row["ref_rejected_token_logps"] == pytest.approx(expected[row["row_key"]].rejected_token_logps, abs=1e-4)
    assert scored.lookup(list(expected)).sort_by("row_key").equals(rows)


def test_pairs_that_were_scored_are_taken_over_whatever_they_were_scored_for(
    tmp_path, pairs, scored, llama, monkeypatch
):
    first = finish(begin(tmp_path / "a", pairs[:20], scored), llama)
    seen = counted(monkeypatch)
    scoring = begin(tmp_path / "b", pairs[::-1], scored)
    assert (scoring.reused, [pair.pair_id for pair in scoring.unscored]) == (20, ["id23", "id22", "id21", "id20"])
    rows = finish(scoring, llama)
    assert sorted(pair_id for batch in seen for pair_id in batch) == ["id20", "id21", "id22", "id23"]
    taken = rows.filter([key in set(first["row_key"].to_pylist()) for key in rows["row_key"].to_pylist()])
    assert taken.equals(first)
    assert begin(tmp_path / "c", pairs, scored).unscored == []


def test_pairs_with_the_same_ids_are_scored_once(work, pairs, scored, llama, monkeypatch):
    seen = counted(monkeypatch)
    twin = type(pairs[0])("twin", "elsewhere", *pairs[0].rows)
    assert finish(begin(work, [*pairs[:5], twin], scored), llama).num_rows == 5
    assert sum(map(len, seen)) == 5


@pytest.mark.parametrize("stop_after", range(1, 24, 3))
def test_an_interrupted_scoring_loses_one_shard_at_most_and_ends_with_the_same_bits(
    tmp_path, pairs, scored, llama, monkeypatch, stop_after
):
    alone = finish(begin(tmp_path / "alone", pairs, ScoreStore(tmp_path / "other").of({})), llama)
    work = tmp_path / "work"
    first = counted(monkeypatch)
    with pytest.raises(Stopped):
        finish(begin(work, pairs, scored), llama, stop_after)
    assert has_plan(work)
    again = begin(work, pairs, scored)
    largest = max(sum(map(len, shard)) for shard in again._plan.shards)
    done = sum(map(len, first))
    before = list(first)
    first.clear()
    rows = finish(again, llama, passes=replace(PASSES, budget=25))  # what fits now is not what fitted then
    assert rows.equals(alone)
    assert sum(map(len, first)) <= len(pairs) - done + largest
    assert {tuple(batch) for batch in [*before, *first]} == {
        tuple(pairs[row].pair_id for row in part) for shard in again._plan.shards for part in shard
    }


@pytest.mark.parametrize("call", range(1, 4))
def test_a_shard_that_a_kill_kept_from_the_store_gets_there_when_the_work_goes_on(
    work, pairs, scored, llama, monkeypatch, call
):
    calls, publish = [], type(scored).publish

    def killed(self, shard):
        calls.append(shard)
        if len(calls) == call:
            raise Stopped
        publish(self, shard)

    with monkeypatch.context() as patched:
        patched.setattr(type(scored), "publish", killed)
        with pytest.raises(Stopped):
            finish(begin(work, pairs, scored), llama)
    finish(begin(work, pairs, scored), llama)
    assert scored.lookup([row_key(pair) for pair in pairs]).num_rows == len(pairs)


def test_rows_that_others_store_meanwhile_do_not_change_the_plan(tmp_path, pairs, scored, llama):
    alone = finish(begin(tmp_path / "alone", pairs, ScoreStore(tmp_path / "other").of({})), llama)
    with pytest.raises(Stopped):
        finish(begin(tmp_path / "work", pairs, scored), llama, 8)
    finish(begin(tmp_path / "meanwhile", pairs[::-1][:15], scored), llama)
    assert finish(begin(tmp_path / "work", pairs, scored), llama).equals(alone)


def test_what_was_scored_is_kept_for_another_plan(work, pairs, scored, llama, monkeypatch):
    with pytest.raises(Stopped):
        finish(begin(work, pairs, scored), llama, 16)
    seen = counted(monkeypatch)
    scoring = begin(work, pairs, scored, {**ASKED, "score_batch_tokens": 20})
    assert scoring.reused >= 8
    finish(scoring, llama)
    assert sum(map(len, seen)) == len(pairs) - scoring.reused


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"digest": "x", "asked": {}}', "[" * 100_000])
def test_a_damaged_plan_is_made_anew(work, pairs, scored, llama, damage):
    with pytest.raises(Stopped):
        finish(begin(work, pairs, scored), llama, 8)
    (scoring_folder(work) / "plan.json").write_text(damage, "utf-8")
    assert finish(begin(work, pairs, scored), llama).num_rows == len(pairs)


def test_a_plan_with_one_number_changed_is_not_followed(work, pairs, scored, llama):
    with pytest.raises(Stopped):
        finish(begin(work, pairs, scored), llama, 8)
    path = scoring_folder(work) / "plan.json"
    kept = json.loads(path.read_text("utf-8"))
    kept["shards"][-1][-1].pop()
    path.write_text(json.dumps(kept), "utf-8")
    assert finish(begin(work, pairs, scored), llama).num_rows == len(pairs)


@pytest.mark.parametrize("pattern", ["00000-*.parquet", "taken-*.parquet"])
def test_a_damaged_file_of_the_work_folder_is_made_again(tmp_path, work, pairs, scored, llama, pattern):
    alone = finish(begin(tmp_path / "alone", pairs, ScoreStore(tmp_path / "other").of({})), llama)
    with pytest.raises(Stopped):
        finish(begin(work, pairs, scored), llama, 16)
    [path] = scoring_folder(work).glob(pattern)
    path.write_bytes(path.read_bytes()[:-1])
    rows = finish(begin(work, pairs, scored), llama)
    expected = alone["ref_chosen_logps"].to_pylist()
    assert rows["ref_chosen_logps"].to_pylist() == pytest.approx(expected, abs=1e-4)
    assert rows["row_key"].equals(alone["row_key"])


def test_some_of_what_is_taken_over_is_given_with_its_stored_sums(tmp_path, pairs, scored, llama):
    finish(begin(tmp_path / "a", pairs, scored), llama)
    scoring = begin(tmp_path / "b", pairs, scored)
    some = scoring.some_taken(5)
    assert 3 <= len(some) <= 5
    live = score_pairs(llama, [pair for pair, _ in some], PASSES)
    for (_, stored), score in zip(some, live, strict=True):
        assert stored == pytest.approx((score.chosen_logps, score.rejected_logps), abs=1e-4)
    assert begin(tmp_path / "c", pairs[:3], ScoreStore(tmp_path / "none").of({})).some_taken(5) == []


@given(lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), max_size=30))
def test_shards_hold_the_micro_batches_in_order_and_are_closed_when_they_are_full(lengths):
    sizes = [size for part in lengths for size in part]
    numbers = iter(range(len(sizes)))
    parts = [[next(numbers) for _ in part] for part in lengths]
    shards = as_shards(parts, sizes, 80)
    assert [part for shard in shards for part in shard] == parts
    for shard in shards:
        held = [sum(sizes[row] for row in part) for part in shard]
        assert sum(held[:-1]) < 80
    for shard in shards[:-1]:
        assert sum(sizes[row] for part in shard for row in part) >= 80
