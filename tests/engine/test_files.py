import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.files
from engine.files import HashMemory, write_atomically
from engine.fingerprint import file_digest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read."""
    read: list[Path] = []
    monkeypatch.setattr(engine.files, "file_digest", lambda path: (read.append(path), file_digest(path))[1])
    return read


def aged(path: Path, text: str) -> Path:
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    return path


def test_an_unchanged_file_is_read_once_even_by_another_process(tmp_path, reads):
    path = aged(tmp_path / "a", "one")
    for _ in range(2):
        memory = HashMemory(tmp_path / "memory.json")
        assert memory.of(path) == memory.of(path) == file_digest(path)
        memory.save()
    assert reads == [path]


def test_a_file_of_the_same_size_and_time_with_other_content_is_read_again(tmp_path):
    path = aged(tmp_path / "a", "one")
    memory = HashMemory(tmp_path / "memory.json")
    before = memory.of(path)
    aged(path, "two")
    assert memory.of(path) == file_digest(path) != before


def test_a_file_that_was_just_written_is_not_trusted_to_keep_its_time(tmp_path, reads, monkeypatch):
    path = tmp_path / "a"
    path.write_text("one")
    monkeypatch.setattr(engine.files.time, "time_ns", lambda: path.stat().st_mtime_ns + 1)
    memory = HashMemory(tmp_path / "memory.json")
    memory.of(path)
    memory.of(path)
    assert len(reads) == 2


def test_a_file_of_the_future_is_remembered_too_since_the_clock_was_set_back(tmp_path, reads):
    path = tmp_path / "a"
    path.write_text("one")
    ahead = time.time_ns() + 10**15
    os.utime(path, ns=(ahead, ahead))
    memory = HashMemory(tmp_path / "memory.json")
    assert memory.of(path) == memory.of(path)
    assert reads == [path]
    path.write_text("two")
    assert memory.of(path) == file_digest(path)


def test_a_file_that_is_read_in_any_case_renews_what_is_remembered(tmp_path):
    path = aged(tmp_path / "a", "one")
    memory = HashMemory(tmp_path / "memory.json")
    memory.of(path)
    memory._known[str(path)][-1] = "0" * 64
    assert memory.of(path) == "0" * 64
    assert memory.read(path) == memory.of(path) == file_digest(path)


def test_what_is_remembered_is_forgotten_when_the_file_is_too_young_to_be_known(tmp_path, monkeypatch):
    path = aged(tmp_path / "a", "one")
    memory = HashMemory(tmp_path / "memory.json")
    memory.of(path)
    memory._known[str(path)][-1] = "0" * 64
    monkeypatch.setattr(engine.files.time, "time_ns", lambda: 2)
    memory.read(path)
    assert memory.of(path) == file_digest(path)


SOUND = [3, 1, 1, 1, "0" * 64]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("0" * 64),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=12,
    )
)
def test_only_entries_of_the_right_shape_are_believed(value):
    shaped = isinstance(value, list) and [type(each) for each in value] == [int] * 4 + [str]
    assert engine.files._is_entry(value) == (shaped and re.fullmatch("[0-9a-f]{64}", value[-1]) is not None)
    assert engine.files._is_entry(SOUND)
    assert not engine.files._is_entry([*SOUND[:-1], "x" * 64])


@pytest.mark.parametrize("entry", [[3, 1, 1, 1, 7], [3.0, 1, 1, 1, "0" * 64], [True, 1, 1, 1, "0" * 64]])
def test_a_memory_of_valid_json_and_wrong_shapes_is_ignored_and_still_written(tmp_path, entry):
    path = aged(tmp_path / "a", "one")
    entries = {str(path): entry, "\x00": SOUND, "x" * 5000: SOUND}
    (tmp_path / "memory.json").write_text(json.dumps(entries))
    memory = HashMemory(tmp_path / "memory.json")
    assert memory.of(path) == file_digest(path)
    memory.save()
    assert list(json.loads((tmp_path / "memory.json").read_text())) == [str(path)]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1]}', "\x00", "{" * 5, "[" * 100_000])
def test_a_memory_that_was_damaged_is_an_empty_one(tmp_path, text):
    (tmp_path / "memory.json").write_text(text)
    path = aged(tmp_path / "a", "one")
    assert HashMemory(tmp_path / "memory.json").of(path) == file_digest(path)


def test_two_that_remember_into_one_file_forget_nothing_of_each_other(tmp_path, reads):
    paths = [aged(tmp_path / name, name) for name in "ab"]
    memories = [HashMemory(tmp_path / "memory.json") for _ in paths]
    for memory in memories:
        memory.of(tmp_path / "a" if memory is memories[0] else tmp_path / "b")
    for memory in memories:
        memory.save()
    reads.clear()
    assert [HashMemory(tmp_path / "memory.json").of(path) for path in paths] == [file_digest(path) for path in paths]
    assert reads == []


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    memory = HashMemory(tmp_path / "file" / "memory.json")
    memory.of(aged(tmp_path / "a", "one"))
    memory.save()


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
