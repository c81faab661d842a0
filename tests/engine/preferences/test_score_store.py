import errno
import os

import pytest

from engine.files import HashMemory
from engine.models.scoring import PairScores
from engine.preferences.score_store import ScoreStore, read_shard, write_shard
from engine.preferences.scores import row_key, scored_rows

SCORER = {"version": 1, "policy": "abc", "dtype": "float32"}


@pytest.fixture
def keys(make_pairs):
    return [row_key(pair) for pair in make_pairs(8)]


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path / "scores")


@pytest.fixture
def publish(store, tmp_path):
    """Stores rows whose chosen sum is the number given with each key."""

    def put(numbers, scorer=SCORER):
        rows = scored_rows(list(numbers), [PairScores([-1.0], [-2.0], float(n), -2.0) for n in numbers.values()])
        (tmp_path / "work").mkdir(exist_ok=True)
        shard = write_shard(tmp_path / "work", rows, "00001-")
        store.of(scorer).publish(shard)
        return store.of(scorer).folder / f"{shard.stem[-64:]}.parquet"

    return put


def broken(store, **how):
    return [path for folder in store.scorers() for path, _ in store.verify(folder, keep=True, **how)]


def found(store, keys, scorer=SCORER):
    rows = store.of(scorer).lookup(keys)
    return dict(zip(rows["row_key"].to_pylist(), rows["ref_chosen_logps"].to_pylist(), strict=True))


def flip(path, at=200):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_rows_are_found_again_from_any_shard_and_only_those_that_are_asked_for(store, publish, keys):
    publish({keys[0]: 1, keys[1]: 2})
    publish({keys[2]: 3, keys[3]: 4})
    assert found(store, [keys[3], keys[0], keys[7]]) == {keys[0]: 1.0, keys[3]: 4.0}


def test_a_row_in_two_shards_is_found_once(store, publish, keys):
    publish({keys[0]: 1, keys[1]: 2})
    publish({keys[0]: 1.5, keys[2]: 3})
    assert store.of(SCORER).lookup(keys).num_rows == 3


@pytest.mark.parametrize("name", SCORER)
def test_another_scorers_rows_are_not_taken(store, publish, keys, name):
    publish({keys[0]: 1})
    assert found(store, keys, SCORER | {name: "another"}) == {}


def test_nothing_is_found_and_nothing_made_where_nothing_was_stored(store, keys):
    assert store.of(SCORER).lookup(keys).num_rows == 0
    assert not store.of(SCORER).folder.exists()
    assert broken(store) == []


def test_a_changed_or_torn_shard_goes_to_quarantine_with_a_word_and_the_others_are_used(store, publish, keys, caplog):
    changed, torn = publish({keys[0]: 1}), publish({keys[1]: 2})
    publish({keys[2]: 3})
    flip(changed)
    torn.write_bytes(torn.read_bytes()[:-40])
    assert broken(store) == sorted([changed, torn])
    assert found(store, keys) == {keys[2]: 3.0}
    assert caplog.text.count("are broken and will be made again") == 2
    assert not changed.exists()
    assert len(list((store.root / ".quarantine").iterdir())) == 2
    assert broken(store) == []


def test_no_flipped_byte_of_a_shard_gets_through(store, publish, keys):
    size = publish({keys[0]: 1}).stat().st_size
    for place in range(0, size, 7):
        path = publish({keys[0]: 1})
        flip(path, place)
        assert found(store, keys) == {}
        assert not path.exists()


def test_a_memory_of_hashes_that_is_wrong_puts_no_shard_aside(store, publish, keys):
    path = publish({keys[0]: 1})
    os.utime(path, ns=(1, 1))
    assert found(store, keys) == {keys[0]: 1.0}
    memory = store.root / ".hashes.json"
    digest = path.stem
    kept = memory.read_text("utf-8")
    assert kept.count(digest) == 2  # in the path and as what was read
    memory.write_text(kept.replace(f'"{digest}"', f'"{"0" * 64}"'), "utf-8")
    assert found(store, keys) == {keys[0]: 1.0}
    assert path.exists()


def test_a_shard_that_cannot_be_read_right_now_stays_where_it_is(store, publish, keys, monkeypatch, caplog):
    path = publish({keys[0]: 1})

    def refuse(*_):
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(HashMemory, "of", refuse)
        assert found(store, keys) == {}
    assert "left where it is" in caplog.text
    assert found(store, keys) == {keys[0]: 1.0}
    assert path.exists()


def test_scores_in_a_store_that_may_only_be_read_are_found(store, publish, keys, monkeypatch):
    publish({keys[0]: 1})

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert found(store, keys) == {keys[0]: 1.0}


def test_a_shard_is_published_though_another_run_sets_all_aside_at_that_moment(store, publish, keys, monkeypatch):
    link, calls = os.link, []

    def set_aside(*given, **named):
        calls.append(given)
        if len(calls) == 1:
            store.of(SCORER).set_aside()
        link(*given, **named)

    publish({keys[1]: 2})
    monkeypatch.setattr(os, "link", set_aside)
    publish({keys[0]: 1})
    assert found(store, keys) == {keys[0]: 1.0}


def test_a_flip_that_leaves_size_and_times_is_found_by_verify(store, publish, keys):
    path = publish({keys[0]: 1})
    long_ago = path.stat().st_mtime_ns - 10**10
    os.utime(path, ns=(long_ago, long_ago))
    assert found(store, keys) == {keys[0]: 1.0}
    flip(path)
    os.utime(path, ns=(long_ago, long_ago))
    assert broken(store) == [path]
    [(_, moved)] = store.verify(path.parent)
    assert moved.is_file()
    assert found(store, keys) == {}


def test_scores_that_are_set_aside_are_found_no_more_and_are_kept_in_quarantine(store, publish, keys):
    publish({keys[0]: 1})
    publish({keys[0]: 1}, SCORER | {"dtype": "bfloat16"})
    store.of(SCORER).set_aside()
    assert found(store, keys) == {}
    assert found(store, keys, SCORER | {"dtype": "bfloat16"}) == {keys[0]: 1.0}
    [kept] = (store.root / ".quarantine").iterdir()
    assert len(list(kept.glob("*.parquet"))) == 1
    store.of(SCORER).set_aside()
    publish({keys[0]: 2})
    assert found(store, keys) == {keys[0]: 2.0}


def test_the_same_shard_is_stored_once(store, publish, keys):
    assert publish({keys[0]: 1}) == publish({keys[0]: 1})
    assert len(list(store.of(SCORER).folder.glob("*.parquet"))) == 1


def test_where_files_cannot_be_linked_they_are_copied(store, publish, keys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "link", refuse)
    publish({keys[0]: 1})
    assert found(store, keys) == {keys[0]: 1.0}


def test_a_shard_that_a_kill_left_half_written_is_no_shard(store, publish, keys):
    path = publish({keys[0]: 1})
    path.with_name(f".{path.name}.123").write_bytes(b"half")
    path.with_name(f".{path.name}").write_bytes(b"half")
    assert found(store, keys) == {keys[0]: 1.0}
    assert broken(store) == []


def test_a_scorer_says_what_it_is_and_its_folder_when_it_was_used_last(store, publish, keys):
    publish({keys[0]: 1})
    [folder] = store.scorers()
    assert (folder / "scorer.json").read_text("utf-8") == '{"dtype":"float32","policy":"abc","version":1}\n'
    os.utime(folder, (0, 0))
    found(store, keys[5:])
    assert folder.stat().st_mtime == 0
    found(store, keys)
    assert folder.stat().st_mtime > 0


def test_a_shard_is_read_back_only_as_it_was_written(tmp_path, keys):
    rows = scored_rows(keys[:2], [PairScores([-1.0], [-2.0, -3.0], -1.0, -5.0)] * 2)
    shard = write_shard(tmp_path, rows)
    assert read_shard(shard).equals(rows)
    assert list(tmp_path.iterdir()) == [shard]
    flip(shard)
    assert read_shard(shard) is None
    assert read_shard(tmp_path / "gone.parquet") is None
