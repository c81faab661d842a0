import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proof.orders import Strike
from proof.points import Watch

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from proof import points
from proof.orders import Strike

folder, strike = Path(sys.argv[1]), Strike("sft", sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else None
watch = points.Watch(str(folder), strike)
points._wrap_system(watch)
points._wrap_open(watch)
(folder / ".work" / "sft-1").mkdir(parents=True)
part, whole = (folder / ".work" / "sft-1" / name for name in ("part", "whole"))
with part.open("w", encoding="utf-8") as file:
    file.write("12345678")
    file.flush()
    os.fsync(file.fileno())
part.rename(whole)
shutil.rmtree(folder / ".work")
(folder.parent / "outside").write_text("not counted", "utf-8")
print(json.dumps({point: count for (stage, point), count in watch.counts.items() if stage == "sft"}))
"""


def run(folder: Path, *strike: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, "-c", SCRIPT, folder, *strike], cwd=ROOT, capture_output=True, text=True)


def test_every_operation_below_the_folder_is_counted_and_none_outside(tmp_path: Path) -> None:
    done = run(tmp_path / "place")
    assert done.returncode == 0, done.stderr
    counts = {
        "after mkdir": 1,
        "before write": 1,
        "inside write": 1,
        "before fsync": 1,
        "after fsync": 1,
        "after write": 1,
        "before rename": 1,
        "after rename": 1,
        "removing": 3,
    }
    assert done.stdout == str(counts).replace("'", '"') + "\n"


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("before write", {}),
        ("inside write", {"part": "1234"}),
        ("before fsync", {"part": "12345678"}),
        ("before rename", {"part": "12345678"}),
        ("after rename", {"whole": "12345678"}),
        ("removing", {}),
    ],
)
def test_the_process_dies_at_its_point_and_leaves_what_was_there(
    tmp_path: Path, point: str, left: dict[str, str]
) -> None:
    done = run(tmp_path / "place", point, "1")
    assert done.returncode == -signal.SIGKILL
    files = (tmp_path / "place").rglob("*")
    assert {path.name: path.read_text("utf-8") for path in files if path.is_file()} == left


def test_the_stage_is_read_off_the_paths_and_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    watch = Watch(str(tmp_path), begins=told.append)
    for path in ("/x/a", "/x/.locks/sft-1", "/x/.work/sft-1/b", "/x/sft/1", "/x/.locks/train-2"):
        watch.at("before write", path)
    watch.at("before fsync")
    assert told == ["sft", "train"]
    assert watch.counts == {
        ("", "before write"): 1,
        ("sft", "before write"): 3,
        ("train", "before write"): 1,
        ("train", "before fsync"): 1,
    }


def test_paths_are_told_before_they_are_written(tmp_path: Path) -> None:
    told: list[str] = []
    watch = Watch(str(tmp_path), writes=told.append)
    for point, path in (("before write", "/x/a"), ("inside write", "/x/a"), ("before rename", "/x/b")):
        watch.at(point, path)
    assert told == ["/x/a"]


def test_only_the_nth_operation_of_its_kind_in_its_stage_is_struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append(signum))
    watch = Watch(str(tmp_path), Strike("sft", "before write", 2))
    for path in ("/.work/tokenize-1/a", "/.work/sft-1/a"):
        watch.at("before write", path)
        watch.at("after write", path)
    assert killed == []
    watch.at("before write")
    assert killed == [signal.SIGKILL]


def test_a_path_that_leads_out_of_the_folder_is_outside(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path / "place"))
    (tmp_path / "place").mkdir()
    assert watch.inside(tmp_path / "place" / "a") == str(tmp_path / "place" / "a")
    assert watch.inside(str(tmp_path / "place" / ".." / "a")) == ""
    assert watch.inside(3) == ""
