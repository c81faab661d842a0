"""The checkpoints of a training run: which are kept, and from which one a run goes on.

A checkpoint is a folder `step-<n>` that appears, and disappears, by one rename. A run goes on from the newest one that
is whole and of this very run; any other is passed over, with word of what is wrong with it.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engine.errors import StoreError
from engine.files import sync
from engine.fingerprint import differences
from engine.training.snapshot import UNREADABLE, Label, read_into, read_label, write
from engine.training.state import Moving, TrainingState

_log = logging.getLogger("dpo")


class Checkpoints:
    """The checkpoints of one training run, below one folder.

    Attributes:
        settled: what is settled before the first step and kept by a run that goes on; JSON-like, saved with each.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        """Touches nothing.

        Args:
            keep: how many are left when another one was written.
            identity: what the run is, as JSON-like values: a checkpoint with any other is passed over.
            environment: what its bits depend on besides: a checkpoint from another one is gone on from, with a warning.
        """
        self.folder = folder
        self.settled: Mapping[str, Any] = {}
        self._keep = keep
        self._identity = dict(identity or {})
        self._environment = dict(environment or {})
        self._passed_over: list[Path] = []

    def settled_before(self) -> Mapping[str, Any]:
        """`settled` of the checkpoint that the run goes on from; empty where there is none.

        Raises:
            StoreError: the disk refuses to let one be read.
        """
        return self._found[1].settled if self._found else {}

    def save(self, state: TrainingState, moving: Moving) -> Path:
        """Writes one checkpoint, and only then removes those it makes superfluous.

        Raises:
            StoreError: it cannot be written.
        """
        target = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{target.name}"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)
            _delete(temporary)
            temporary.mkdir()
            write(temporary, state, moving, Label(self._identity, self.settled, self._environment))
            _discard(target)
            temporary.rename(target)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            _delete(temporary)
            raise StoreError(
                "a checkpoint cannot be written",
                found=str(error),
                where=str(target),
                fix="free the disk or its permissions, then run again: the checkpoint before this one is kept",
            ) from None
        self._remove_superfluous(target)
        return target

    def restore(self, moving: Moving) -> TrainingState | None:
        """Puts the newest one that is whole and of this run back into the given objects and the random streams.

        Returns:
            Where the run is then; None when there is none, and then nothing was touched.

        Raises:
            StoreError: the disk refuses to let one be read.
        """
        while self._found:
            folder, label = self._found
            try:
                with _readable(folder):
                    state = read_into(folder, moving)
            except UNREADABLE as error:
                self._pass_over(folder, f"does not fit: {error}")
                del self._found
                continue
            self._warn_of_another_environment(folder, label)
            return state
        return None

    @cached_property
    def _found(self) -> tuple[Path, Label] | None:
        """The newest that is whole and of this run. Its files are read once; what a kill left unfinished is removed."""
        for left in self.folder.glob(".*"):
            _delete(left)
        for folder in reversed(self._all()):
            if folder in self._passed_over:
                continue
            try:
                with _readable(folder):
                    label = read_label(folder)
                other = differences(dict(label.identity), self._identity)
            except UNREADABLE as error:
                self._pass_over(folder, f"cannot be read: {error}")
                continue
            if not other:
                return folder, label
            self._pass_over(folder, f"is of another run: {_told(other)}")
        return None

    def _pass_over(self, folder: Path, why: str) -> None:
        self._passed_over.append(folder)
        _log.warning("the checkpoint %s is passed over, it %s", folder, why)

    def _warn_of_another_environment(self, folder: Path, label: Label) -> None:
        changes = differences(dict(label.environment), self._environment)
        if changes:
            _log.warning(
                "the checkpoint %s was written under another environment (%s): it goes on, but the result will not be "
                "the same to the bit as without a stop",
                folder,
                _told(changes),
            )

    def _remove_superfluous(self, newest: Path) -> None:
        """Those passed over, those of later steps, which a run that began before them has left, and the oldest."""
        older = [folder for folder in self._all() if folder < newest and folder not in self._passed_over]
        kept = [*older, newest][-self._keep :]
        for folder in self._all():
            if folder not in kept:
                _discard(folder)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Tells a disk that refuses, which may do better later, from a checkpoint that is broken."""
    try:
        yield
    except UNREADABLE:
        raise
    except OSError as error:
        raise StoreError(
            "a checkpoint cannot be read",
            found=str(error),
            where=str(folder),
            fix="repair the disk or its permissions; or delete it, to go on from the one before it",
        ) from None


def _discard(folder: Path) -> None:
    """Removes a checkpoint so that a kill halfway leaves nothing that looks like one."""
    if not folder.exists():
        return
    aside = folder.with_name(f".{folder.name}.removed")
    _delete(aside)
    try:
        folder.rename(aside)
    except OSError as error:
        _log.warning("the checkpoint %s cannot be removed: %s", folder, error)
        return
    _delete(aside)


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink(missing_ok=True)


def _told(changes: Iterable[tuple[str, object, object]]) -> str:
    return ", ".join(f"{name}: {old} → {new}" for name, old, new in changes)
