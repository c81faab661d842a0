"""Where artifacts live: `<root>/<stage>/<key>/`, sealed by a manifest that is written last.

A stage writes into `<root>/.work/<stage>-<key>/`, so that its next attempt finds what the last one left. Sealing
hashes and syncs every file, writes `manifest.json`, and renames the folder: a folder under `<stage>/` is whole or
is not there. What does not match its manifest is moved to `<root>/.quarantine/`, never deleted. What `dpo gc` removes
leaves its manifest in `<root>/.pruned/<stage>/<key>/`.
"""

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.artifact import AUXILIARY, HANDED_DOWN, MANIFEST, Artifact, seal_of
from engine.attempts import Attempt, leave, left_in
from engine.errors import StoreError, TransientError
from engine.files import HashMemory, mark, sync, write_atomically
from engine.fingerprint import digest, file_digest
from engine.locks import LockFolderError, holder, holding

__all__ = ["AUXILIARY", "HANDED_DOWN", "MANIFEST", "Artifact", "Store"]

WORK, PRUNED, QUARANTINE, REPLACED = ".work", ".pruned", ".quarantine", "-replaced"
_log = logging.getLogger("dpo")


class Store:
    """The artifacts below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashes = HashMemory(root / ".hashes.json")

    def find(self, stage: str, key: str) -> Artifact | None:
        """The sealed artifact under that key, or None. Its files are not read: see `verify`.

        Raises:
            StoreError: the folder cannot be looked into.
        """
        artifact = Artifact(stage, key, self.root / stage / key)
        try:
            if not artifact.path.exists() and self._replaced(stage, key).exists():
                self._recover(stage, key)
            return artifact if (artifact.path / MANIFEST).is_file() else None
        except OSError as error:
            raise self._unusable(artifact.path, error, "read") from None

    def all(self, stage: str) -> list[Artifact]:
        """Every sealed artifact of a stage whose manifest can be read, newest first."""
        return _newest_first(Artifact(stage, path.name, path) for path in self.folders(stage))

    def folders(self, stage: str) -> list[Path]:
        """Every folder below a stage's, sealed or not, without links; first what a crash left aside is brought back."""
        try:
            for path in (self.root / WORK).glob(f"{stage}-*{REPLACED}"):
                self.find(stage, path.name.removeprefix(f"{stage}-").removesuffix(REPLACED))
            below = sorted((self.root / stage).iterdir()) if (self.root / stage).is_dir() else []
            return [path for path in below if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
        except OSError as error:
            raise self._unusable(self.root / stage, error, "read") from None

    def pruned(self, stage: str, key: str) -> Artifact | None:
        """What is left of a removed artifact, its manifest, when that can be read."""
        artifact = Artifact(stage, key, self.root / PRUNED / stage / key, pruned=True)
        return artifact if artifact.readable else None

    def all_pruned(self, stage: str) -> list[Artifact]:
        """The manifests of a stage's removed artifacts that can be read, newest first."""
        found = (self.root / PRUNED / stage).glob(f"*/{MANIFEST}")
        return _newest_first(Artifact(stage, path.parent.name, path.parent, pruned=True) for path in found)

    def attempts(self, stage: str) -> list[Attempt]:
        """What interrupted attempts of a stage left that nobody goes on with right now and that says what it is of."""
        found = [left_in(path, stage) for path in (self.root / WORK).glob(f"{stage}-*")]
        return [each for each in found if each and not self.holder(stage, each.key)]

    def verify(self, artifact: Artifact, *, read_all: bool = False) -> list[str]:
        """What is wrong with an artifact's files, in words; empty when every byte is as sealed and nothing was added.

        A file is read unless its size, times and inode are those of the last time it was read; with `read_all`,
        in any case.
        """
        try:
            files = artifact.manifest["files"]
            found = [(name, self._problem(artifact, name, sealed, read_all)) for name, sealed in files.items()]
            found += [(name, "was not sealed with it") for name in artifact.strangers()]
        except StoreError as error:
            return [" ".join(f"{error.problem}: {error.found}".split())]
        except OSError as error:
            return [f"its folder cannot be read ({error})"]
        self._hashes.save()
        return [f"{name} {problem}" for name, problem in found if problem]

    def _problem(self, artifact: Artifact, name: str, sealed: Mapping[str, Any], read_all: bool) -> str:
        path = artifact.path / name
        try:
            if not path.is_file():
                return "is gone"
            if path.resolve() != Path(f"{artifact.path.resolve()}/{name}"):  # by a link, `..` or an absolute name
                return "lies outside the artifact"
            if path.stat().st_size != sealed["bytes"]:
                return f"has {path.stat().st_size} bytes, sealed with {sealed['bytes']}"
            same = not read_all and self._hashes.of(path) == sealed["sha256"]
            same = same or self._hashes.read(path) == sealed["sha256"]  # what is remembered may be wrong
        except OSError as error:
            return f"cannot be read ({error})"
        return "" if same else "does not have the content it was sealed with"

    def quarantine(self, artifact: Artifact) -> Path:
        """Moves a broken artifact out of the way and returns where it is now. Raises StoreError when it cannot."""
        target = self.root / QUARANTINE / f"{artifact.stage}-{artifact.key}-{time.time_ns()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            artifact.path.rename(target)
            for folder in (target.parent, artifact.path.parent):
                sync(folder)
        except OSError as error:
            raise self._unusable(artifact.path, error) from None
        return target

    def work(
        self,
        stage: str,
        key: str,
        *,
        fresh: bool = False,
        payload: Mapping[str, Any] | None = None,
        forced: bool = False,
    ) -> Path:
        """The folder a stage writes into before it is sealed; with `fresh`, emptied first.

        With a `payload` it says what is being made there, and whether by force, for the case that it never is.

        Raises:
            StoreError: the folder cannot be written, or not be emptied, or what is made there could not be sealed.
        """
        path = self.work_folder(stage, key)
        try:
            _check_place(self.root / stage)
            if fresh and path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / MANIFEST).unlink(missing_ok=True)
            if payload is not None:
                leave(path, payload, forced=forced)
        except OSError as error:
            raise self._unusable(path, error) from None
        return path

    def work_folder(self, stage: str, key: str) -> Path:
        """Where that folder is, or would be; makes nothing."""
        return self.root / WORK / f"{stage}-{key}"

    def attempt(self, stage: str, key: str) -> Attempt | None:
        """What that folder says of itself."""
        return left_in(self.work_folder(stage, key), stage)

    def holder(self, stage: str, key: str) -> str | None:
        """Who is making that artifact right now, in words; None when nobody is."""
        return holder(self._lock(stage, key))

    def seal(self, stage: str, key: str, work: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Makes the work folder the artifact: hash, sync, manifest last, one rename. Replaces an older one.

        Raises:
            StoreError: a file cannot be written or the folder cannot be moved.
        """
        target = self.root / stage / key
        try:
            marks = {path.relative_to(work).as_posix(): _synced(path) for path in _files(work)}
            files = {name: {"bytes": seen[0], "sha256": file_digest(work / name)} for name, seen in marks.items()}
            content = {name: entry for name, entry in files.items() if not name.startswith(f"{AUXILIARY}/")}
            own = {"stage": stage, "key": key, "digest": digest(content), "files": files}
            sealed = json.loads(json.dumps(dict(manifest) | own))  # as it will be read
            sealed["seal"] = seal_of(sealed)
            write_atomically(work / MANIFEST, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")
            for folder in [*(path for path in work.rglob("*") if path.is_dir()), work]:
                sync(folder)
            self._swap_in(work, target, self._replaced(stage, key))
        except OSError as error:
            raise self._unusable(target, error) from None
        self._remember(target, files, marks)
        return Artifact(stage, key, target)

    def _remember(self, target: Path, files: Mapping[str, Any], marks: Mapping[str, list[int | str]]) -> None:
        try:
            for name, entry in files.items():
                self._hashes.learn(target / name, entry["sha256"], marks[name])
        except OSError as error:
            _log.debug("%s is read again at its next use: %s", target, error)
        self._hashes.save()

    def _swap_in(self, work: Path, target: Path, replaced: Path) -> None:
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(self.root)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)  # no call swaps two folders everywhere; after a crash `locked` undoes this
        work.rename(target)
        sync(target.parent)
        _remove_leftovers(target)
        for old in (replaced, self.root / PRUNED / target.parent.name / target.name):
            shutil.rmtree(old, ignore_errors=True)

    def _replaced(self, stage: str, key: str) -> Path:
        return self.root / WORK / f"{stage}-{key}{REPLACED}"

    def _recover(self, stage: str, key: str) -> None:
        """Brings back what a crash left between the two renames of `_swap_in`, unless somebody is sealing right now."""
        try:
            with self.locked(stage, key, 0):
                pass
        except (TransientError, StoreError) as error:
            _log.debug("%s %s not brought back: %s", stage, key, error.problem)

    @contextmanager
    def locked(self, stage: str, key: str, wait_seconds: float) -> Iterator[str | None]:
        """Holds the lock of one key, and first brings back an artifact that a crash while replacing it left aside.

        Yields:
            Whom it waited for, in words; None when it did not have to wait.

        Raises:
            TransientError: somebody else still holds it after `wait_seconds`; the message names them.
            StoreError: the lock's folder cannot be written.
        """
        path = self._lock(stage, key)
        try:
            with holding(path, wait_seconds, f"{stage} {key}") as before:
                self._bring_back(stage, key)
                yield before
        except LockFolderError as error:
            raise self._unusable(path, error) from None

    def _lock(self, stage: str, key: str) -> Path:
        return self.root / ".locks" / f"{stage}-{key}"

    def _bring_back(self, stage: str, key: str) -> None:
        target, replaced = self.root / stage / key, self._replaced(stage, key)
        try:
            if not target.exists() and (replaced / MANIFEST).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                replaced.rename(target)
        except OSError as error:
            raise self._unusable(target, error) from None

    def _unusable(self, path: Path, error: OSError, verb: str = "written") -> StoreError:
        return StoreError(
            f"the artifact store {self.root} cannot be {verb}",
            found=str(error),
            where=str(path),
            fix="free the disk or its permissions, or set runtime.artifacts and runtime.data to other folders",
        )


def _remove_leftovers(folder: Path) -> None:
    """Deletes what has a name with a dot in front: what an attempt would have gone on from, and half-written files.

    Only once the folder is sealed; until then a kill may leave the work to be gone on with. What cannot be deleted is
    no part of the artifact and does no harm.
    """
    for path in list(folder.rglob(".*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _check_place(folder: Path) -> None:
    """Raises NotADirectoryError where something lies that is no folder."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "no folder, so nothing can be sealed there", str(folder))


def _files(folder: Path) -> list[Path]:
    """What is sealed: everything without a dot in front of its name or of a folder's it lies in."""
    found = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def _synced(path: Path) -> list[int | str]:
    sync(path)
    return mark(path)


def _newest_first(artifacts: Iterable[Artifact]) -> list[Artifact]:
    return sorted((each for each in artifacts if each.readable), key=_sealed_at, reverse=True)


def _sealed_at(artifact: Artifact) -> float:
    try:
        return datetime.fromisoformat(str(artifact.manifest["sealed_at"])).timestamp()
    except (KeyError, ValueError, OverflowError, OSError):
        return 0.0
