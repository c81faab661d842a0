import os
from pathlib import Path

import pytest

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
