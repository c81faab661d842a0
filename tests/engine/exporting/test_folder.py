import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError, StoreError
from engine.exporting.earlier import ABOUT, clear, note
from engine.exporting.folder import check_place, copy_files, size_of, taking_place


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(out, text, *, force=False):
    with taking_place(out, force=force) as folder:
        (folder / "file").write_text(text)
        note(folder, {"kind": "adapter"})


def test_it_is_there_when_the_block_is_over_and_not_before(tmp_path):
    out = tmp_path / "deep" / "out"
    with taking_place(out, force=False) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
        assert folder.parent == out.parent
    assert (out / "file").read_text() == "whole"
    assert names(out.parent) == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "whole")
    assert names(tmp_path / "out") == [ABOUT, "file"]


def test_an_earlier_export_is_replaced_by_force_only(tmp_path):
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(ConfigError, match="cannot go there") as error:
        write(out, "second")
    assert "--force" in error.value.fix
    write(out, "second", force=True)
    assert (out / "file").read_text() == "second"
    assert names(tmp_path) == ["out"]


def test_what_no_export_wrote_is_never_removed(tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter").write_text("one")
    with pytest.raises(ConfigError) as error:
        write(out, "x", force=True)
    assert error.value.found == "a folder with files that no export wrote"
    assert (out / "chapter").read_text() == "one"


@pytest.mark.parametrize("about", ["{}", "[]", "{", '{"files": ["chapter"]}', '{"written_by": "dpo export"}'])
def test_a_file_that_is_named_like_an_exports_makes_no_folder_one(tmp_path, about):
    (tmp_path / ABOUT).write_text(about)
    (tmp_path / "chapter").write_text("one")
    with pytest.raises(ConfigError) as error:
        write(tmp_path, "x", force=True)
    assert error.value.found == "a folder with files that no export wrote"


@pytest.mark.parametrize("name", ["thesis", ".env", "policy/notes.txt", "mine/"])
def test_what_was_put_into_an_export_is_named_and_never_removed(tmp_path, name):
    out = tmp_path / "out"
    write(out, "first")
    path = out / name
    path.mkdir() if name.endswith("/") else path.parent.mkdir(exist_ok=True)
    path.is_dir() or path.write_text("mine")
    with pytest.raises(ConfigError) as error:
        write(out, "second", force=True)
    assert name.rstrip("/") in error.value.found
    assert "move that out" in error.value.fix
    assert path.exists()
    assert (out / "file").read_text() == "first"


def test_what_was_put_into_an_export_while_the_next_was_written_is_kept(tmp_path):
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(ConfigError, match="cannot go there"), taking_place(out, force=True):
        (out / "thesis").write_text("mine")
    assert names(out) == [ABOUT, "file", "thesis"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_is_not_taken(tmp_path, kind):
    out = tmp_path / "out"
    out.write_text("mine") if kind == "file" else out.symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        check_place(out, force=True)


def test_a_failure_leaves_nothing_and_an_earlier_export_as_it_was(tmp_path):
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(ValueError, match="halfway"), taking_place(out, force=True) as folder:
        (folder / "file").write_text("second")
        raise ValueError("halfway")
    assert names(tmp_path) == ["out"]
    assert (out / "file").read_text() == "first"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_is_said_to_be_one_and_nothing_is_left(tmp_path, error):
    with pytest.raises(StoreError, match="the disk is full") as told, taking_place(tmp_path / "out", force=False):
        raise error
    assert "free some space" in told.value.fix
    assert names(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), taking_place(tmp_path / "out", force=False) as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("after", [1, 2])
def test_a_stop_between_two_renames_leaves_one_of_the_two_exports_whole(tmp_path, monkeypatch, stop, after):
    out, rename, done = tmp_path / "out", Path.rename, []
    write(out, "first")

    def stopping(path, target):
        rename(path, target)
        done.append(target)
        if len(done) == after:
            raise stop

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(stop):
        write(out, "second", force=True)
    assert (out / "file").read_text() == ("first" if after == 1 else "second")
    assert names(tmp_path) == ["out"]


def test_what_another_export_clears_while_one_is_put_in_place_is_not_the_earlier_one(tmp_path, monkeypatch):
    out, rename, seen = tmp_path / "out", Path.rename, []
    write(out, "first")

    def another(path, target):
        moved = rename(path, target)
        monkeypatch.setattr(Path, "rename", rename)
        clear(out)  # between the two renames, as another process would
        monkeypatch.setattr(Path, "rename", another)
        seen.append(sorted(name.split("-")[0] for name in names(tmp_path)))
        return moved

    monkeypatch.setattr(Path, "rename", another)
    write(out, "second", force=True)
    assert seen == [[".out.export", ".out.replaced"], [".out.replaced", "out"]]
    assert (out / "file").read_text() == "second"
    assert names(tmp_path) == ["out"]


def test_a_file_where_a_folder_has_to_be_is_named(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for out in (tmp_path / "thesis" / "out", tmp_path / "thesis" / "deep" / "out"):
        with pytest.raises(ConfigError, match="cannot go there") as error:
            write(out, "x")
        assert str(tmp_path / "thesis") in error.value.found


@pytest.mark.parametrize("name", ["a" * 300, "a" * 250])
def test_a_name_that_no_folder_can_have_is_refused_in_words(tmp_path, name):
    with pytest.raises((ConfigError, StoreError)) as error:
        write(tmp_path / name, "x")
    assert error.value.found
    assert error.value.fix == "name another folder"
    assert names(tmp_path) == []


def test_a_file_that_cannot_be_read_is_named_and_no_other_folder_asked_for(tmp_path):
    with pytest.raises(StoreError, match="cannot be written") as error, taking_place(tmp_path / "out", force=False):
        (tmp_path.parent / "gone").read_text()
    assert "gone" in error.value.found
    assert "this file is there" in error.value.fix


def test_files_that_cannot_be_copied_are_told_and_trouble_with_the_network_is_not_the_folders(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"), taking_place(tmp_path / "out", force=False):
        raise shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")])
    with pytest.raises(ConnectionResetError), taking_place(tmp_path / "out", force=False):
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")


def test_a_place_that_may_not_be_written_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(StoreError, match="cannot be written"):
        write(tmp_path / "out", "x")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_size_is_that_of_all_files_and_copies_have_it_too(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("size")
    for number, content in enumerate(contents):
        (folder / "a" / str(number)).mkdir(parents=True)
        (folder / "a" / str(number) / "file").write_bytes(content)
    (folder / ".hidden").write_text("")
    assert size_of(folder) == sum(map(len, contents))
    copy = tmp_path_factory.mktemp("copy")
    copy_files(folder, copy)
    assert size_of(copy) == size_of(folder)
    assert not (copy / ".hidden").exists()
