"""What an earlier export left: the mark and the files that it is known by, and what a killed one did not remove."""

import fcntl
import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

ABOUT = "export.json"
_WRITER = {"written_by": "dpo export"}


def note(folder: Path, told: Mapping[str, Any]) -> None:
    """Writes what the export is, and its files, after all of them: a later one may replace these and nothing else."""
    files = sorted(_entries(folder, files_alone=True) | {ABOUT})
    text = json.dumps({**_WRITER, **told, "files": files}, indent=1, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", "utf-8")


def written(folder: Path) -> frozenset[str] | None:
    """The files that an export wrote there, by their paths in it; None where no export did."""
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or not _WRITER.items() <= about.items() or not isinstance(about.get("files"), list):
        return None
    return frozenset(map(str, about["files"]))


def foreign(folder: Path, files: frozenset[str]) -> list[str]:
    """What lies in a folder besides these files and the folders that they are in, sorted."""
    around = {parent.as_posix() for name in files for parent in Path(name).parents}
    return sorted(_entries(folder) - files - around)


def beside(out: Path, what: Literal["export", "replaced"]) -> Path:
    """A new name next to a place, for what is to come there or was there; `clear` knows it."""
    return out.with_name(f".{out.name}.{what}-{time.time_ns():016x}")


def clear(out: Path) -> None:
    """Removes what killed exports to this place left beside it; an earlier export that they moved away is put back.

    What another process is writing now stays.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.(export|replaced)-[0-9a-f]{{16}}")
    for path in sorted(out.parent.glob(f".{glob.escape(out.name)}.*"), reverse=True):
        known = ours.fullmatch(path.name)
        if known is None or path.is_symlink() or not path.is_dir():
            continue
        with holding(path) as alone:
            if alone and known[1] == "replaced" and not out.exists():
                path.rename(out)
            elif alone:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Holds a folder, by whatever name, until the block or the process ends; whether nobody else held it.

    False as well where the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _entries(folder: Path, *, files_alone: bool = False) -> set[str]:
    """All that lies below a folder, by its path in it; links are files."""
    found = (path for path in folder.rglob("*") if not files_alone or path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}
