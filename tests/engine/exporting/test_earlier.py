import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.exporting.earlier import ABOUT, beside, clear, foreign, holding, note, written
from engine.exporting.folder import taking_place

KILLED = """
import os, pathlib, signal, sys
from engine.exporting.earlier import note
from engine.exporting.folder import taking_place

out, renames = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rename = pathlib.Path.rename
def killing(path, target):
    global renames
    rename(path, target)
    renames -= 1
    if renames == 0:
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.rename = killing
with taking_place(out, force=True) as folder:
    (folder / "file").write_text("second")
    note(folder, {})
    if renames == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(out, text, *, force=False):
    with taking_place(out, force=force) as folder:
        (folder / "file").write_text(text)
        note(folder, {"kind": "adapter"})


@pytest.mark.parametrize(("renames", "left"), [(0, "first"), (1, "first"), (2, "second")])
def test_what_a_kill_leaves_is_put_right_by_the_next_export_there(tmp_path, renames, left):
    out = tmp_path / "out"
    write(out, "first")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), str(renames)], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert len(names(tmp_path)) == 2
    with pytest.raises(ConfigError, match="cannot go there") as error:
        write(out, "third")
    assert error.value.found == "an earlier export"
    assert (out / "file").read_text() == left
    assert names(tmp_path) == ["out"]
    write(out, "third", force=True)
    assert (out / "file").read_text() == "third"


def test_what_another_process_is_writing_stays(tmp_path):
    out = tmp_path / "out"
    with taking_place(out, force=False) as folder:
        clear(out)
        assert folder.is_dir()
    assert names(tmp_path) == ["out"]


def test_only_names_that_an_export_to_this_place_gives_are_cleared(tmp_path):
    out = tmp_path / "out"
    others = [".out.export-mine", ".out.backup", ".other.export-18eaa3266299d1ae", "out.export-18eaa3266299d1ae"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.export-18eaa3266299d1ae").write_text("no folder")
    (tmp_path / ".out.export-18eaa3266299d1af").symlink_to(tmp_path / ".out.backup")
    before = names(tmp_path)
    beside(out, "export").mkdir()
    clear(out)
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "link to nothing", "file"])
def test_what_is_named_like_an_export_moved_away_and_is_no_folder_is_not_put_back(tmp_path, kind):
    left, mine = tmp_path / ".out.replaced-18eaa3266299d1ae", tmp_path / "mine"
    if kind == "file":
        left.write_text("mine")
    else:
        left.symlink_to(mine)
    if kind == "link to a folder":
        mine.mkdir()
        (mine / "thesis").write_text("mine")
    elif kind == "link to a file":
        mine.write_text("mine")
    before = names(tmp_path)
    clear(tmp_path / "out")
    assert names(tmp_path) == before
    assert left.is_symlink() == (kind != "file")


def test_a_folder_is_held_by_one_at_a_time_under_any_name(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    with holding(folder) as first:
        folder = folder.rename(tmp_path / "b")
        with holding(folder) as second:
            assert (first, second) == (True, False)
    with holding(folder) as again:
        assert again


def test_an_export_says_who_wrote_it_and_which_files_it_has(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"")
    note(tmp_path, {"kind": "adapter"})
    about = json.loads((tmp_path / ABOUT).read_text())
    assert about["files"] == [ABOUT, "policy/model.safetensors"]
    assert (about["kind"], about["written_by"]) == ("adapter", "dpo export")
    assert foreign(tmp_path, written(tmp_path)) == []
    (tmp_path / "policy" / "link").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    assert foreign(tmp_path, written(tmp_path)) == ["empty", "policy/link"]


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.recursive(
            st.none() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["files", "written_by"]), inner),
            max_leaves=4,
        ),
    )
)
def test_whatever_a_file_of_that_name_holds_it_is_read_or_no_exports(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "about"
    folder.mkdir(exist_ok=True)
    (folder / ABOUT).write_bytes(content)
    assert written(folder) is None
