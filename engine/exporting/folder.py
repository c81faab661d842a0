"""The folder that an export becomes: written beside its place, put there by a rename, or not there at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import ConfigError, StoreError
from engine.exporting.earlier import beside, clear, foreign, holding, written

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_IN_WORDS = ("No space left on device", "Disk quota exceeded")  # libraries wrap the system's error in their own
_NAMED = 5  # of the files in the way


def check_place(out: Path, *, force: bool) -> None:
    """Refuses a place that an export may not take, before anything heavy is done.

    Args:
        force: replace what is there, if an earlier export wrote all of it; anything else is never removed.

    Raises:
        ConfigError: a file or link is there, a folder that holds something, or there can be no folder of that name.
    """
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise _taken("a file or link", out)
        blocking = next((each for each in out.parents if each.exists() and not each.is_dir()), None)
        if blocking is not None:
            raise _taken(f"a file where a folder would have to be: {blocking}", out)
        if out.is_dir() and any(out.iterdir()):
            _check_filled(out, force=force)
    except OSError as error:  # a name that is too long; a folder that may not be looked into
        raise _taken(str(error), out) from None


def _check_filled(out: Path, *, force: bool) -> None:
    files = written(out)
    if files is None:
        raise _taken("a folder with files that no export wrote", out, "name another folder, or empty this one")
    if others := foreign(out, files):
        names = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        found = f"an earlier export, and in it what no export wrote: {names}"
        raise _taken(found, out, "name another folder, or move that out of this one first")
    if not force:
        raise _taken("an earlier export", out, "--force replaces it, or name another folder")


def _taken(found: str, out: Path, fix: str = "name another folder") -> ConfigError:
    return ConfigError(
        "the export cannot go there", expected="a new or empty folder", found=found, where=str(out), fix=fix
    )


@contextmanager
def taking_place(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write into, which is at `out` when the block is over; when it fails nothing of it is left.

    Whatever ends it, also between two renames, an earlier export is whole at `out` or replaced. What a kill leaves
    beside it, the next one to the same place puts right.

    Raises:
        ConfigError: as `check_place`, which is asked again before anything is replaced.
        StoreError: the disk is full, or a file cannot be written or read.
    """
    with _in_words(out):
        check_place(out, force=True)
        clear(out)
        check_place(out, force=force)
        with _fresh(out) as folder:
            yield folder
            check_place(out, force=force)
            _settle(folder, out)


@contextmanager
def _fresh(out: Path) -> Iterator[Path]:
    folder = beside(out, "export")
    try:
        folder.mkdir(parents=True)
        with holding(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing, where it has moved to its place


def _settle(folder: Path, out: Path) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        folder.rename(out)
        return
    old = beside(out, "replaced")
    try:
        with holding(out):
            out.rename(old)
            folder.rename(out)
    finally:
        if old.is_dir() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_files(source: Path, target: Path) -> None:
    """Copies the contents of files, not their modes. Names that begin with a dot stay behind."""
    shutil.copytree(
        source, target, copy_function=shutil.copyfile, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*")
    )


@contextmanager
def _in_words(out: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise (_explained(error, out) or error) from None


def _explained(error: Exception, out: Path) -> StoreError | None:
    """The error for a full disk, or a file that cannot be written or read; None where it is about something else."""
    if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_IN_WORDS):
        return StoreError(
            "the disk is full, and nothing of the export is left",
            found=str(error),
            where=str(out.parent),
            fix="free some space, or name a folder on another disk",
        )
    about_files = isinstance(error, shutil.Error) or getattr(error, "errno", None) is not None
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError) or not about_files:
        return None
    read = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(out.parent)
    fix = "see that this file is there and may be read" if read else "name another folder"
    return StoreError("the export cannot be written", found=str(error), where=str(out), fix=fix)
