"""Where artifacts live: `<root>/<stage>/<key>/`, sealed by a manifest that is written last.

A stage writes into `<root>/.work/<stage>-<key>/`, so that its next attempt finds what the last one left. Sealing
hashes and syncs every file, writes `manifest.json`, and renames the folder: a folder under `<stage>/` is whole or
is not there. What does not match its manifest is moved to `<root>/.quarantine/`, never deleted.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.errors import StoreError, TransientError
from engine.files import HashMemory, sync, write_atomically
from engine.fingerprint import digest, file_digest
from engine.locks import LockFolderError, holder, holding

MANIFEST = "manifest.json"
HANDED_DOWN = "handed_down.json"  # what the stages below read of a stage besides its tables and weights
AUXILIARY = "logs"  # files below this folder are sealed too, but are no part of the artifact's digest
_FIELDS = {"stage", "key", "digest", "payload", "files", "metrics", "seal"}
_log = logging.getLogger("dpo")


@dataclass(frozen=True)
class Artifact:
    """A sealed folder. `digest` depends on the content of its files only, so equal content is the same input."""

    stage: str
    key: str
    path: Path

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The parsed manifest. Raises StoreError when it cannot be read."""
        return _read_manifest(self.path / MANIFEST)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over the names and contents of the files outside `logs/`."""
        return str(self.manifest["digest"])

    @cached_property
    def handed_down(self) -> Mapping[str, Any]:
        """What its stage told the stages below with `Context.hand_down`; a part of the digest, as any file is."""
        handed: Mapping[str, Any] = json.loads(self.file(HANDED_DOWN).read_text("utf-8"))
        return handed

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The headline numbers the stage recorded."""
        metrics: Mapping[str, Any] = self.manifest["metrics"]
        return metrics

    def file(self, name: str) -> Path:
        """The path of one of its files. Raises StoreError when the artifact has none of that name."""
        path = self.path / name
        if not path.exists():
            raise StoreError(f"artifact {self.stage}/{self.key} has no `{name}`", where=str(self.path))
        return path


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if not isinstance(manifest, dict) or not set(manifest) >= _FIELDS:
            raise ValueError("fields are missing")
        if manifest["seal"] != _seal_of(manifest):
            raise ValueError("it was changed after it was sealed")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError("a manifest cannot be read", found=str(error), where=str(path)) from None
    return manifest


def _seal_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's other fields, so that a changed metric or key is noticed like a changed file."""
    rest = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
        found = [Artifact(stage, path.parent.name, path.parent) for path in (self.root / stage).glob(f"*/{MANIFEST}")]
        readable = [artifact for artifact in found if _readable(artifact)]
        return sorted(readable, key=lambda artifact: str(artifact.manifest.get("sealed_at")), reverse=True)

    def verify(self, artifact: Artifact) -> list[str]:
        """What is wrong with an artifact's files, in words; empty when every byte is as sealed.

        A file is read unless its size, times and inode are those of the last time it was read and found right.
        """
        try:
            files = artifact.manifest["files"]
        except StoreError as error:
            return [str(error)]
        problems = [(name, self._problem(artifact, name, sealed)) for name, sealed in files.items()]
        self._hashes.save()
        return [f"{name} {problem}" for name, problem in problems if problem]

    def _problem(self, artifact: Artifact, name: str, sealed: Mapping[str, Any]) -> str:
        path = artifact.path / name
        try:
            if not path.is_file():
                return "is gone"
            if path.stat().st_size != sealed["bytes"]:
                return f"has {path.stat().st_size} bytes, sealed with {sealed['bytes']}"
            same = self._hashes.of(path) == sealed["sha256"]
        except OSError as error:
            return f"cannot be read ({error})"
        return "" if same else "does not have the content it was sealed with"

    def quarantine(self, artifact: Artifact) -> Path:
        """Moves a broken artifact out of the way and returns where it is now. Raises StoreError when it cannot."""
        target = self.root / ".quarantine" / f"{artifact.stage}-{artifact.key}-{time.time_ns()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            artifact.path.rename(target)
        except OSError as error:
            raise self._unusable(artifact.path, error) from None
        return target

    def work(self, stage: str, key: str, *, fresh: bool = False) -> Path:
        """The folder a stage writes into before it is sealed; with `fresh`, emptied first.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self.work_folder(stage, key)
        try:
            if fresh:
                shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True, exist_ok=True)
            (path / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(path, error) from None
        return path

    def work_folder(self, stage: str, key: str) -> Path:
        """Where that folder is, or would be; makes nothing."""
        return self.root / ".work" / f"{stage}-{key}"

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
            _remove_leftovers(work)
            files = {path.relative_to(work).as_posix(): _sealed_file(path) for path in _files(work)}
            content = {name: entry for name, entry in files.items() if not name.startswith(f"{AUXILIARY}/")}
            own = {"stage": stage, "key": key, "digest": digest(content), "files": files}
            sealed = json.loads(json.dumps(dict(manifest) | own))  # as it will be read
            sealed["seal"] = _seal_of(sealed)
            write_atomically(work / MANIFEST, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")
            for folder in [*(path for path in work.rglob("*") if path.is_dir()), work]:
                sync(folder)
            self._swap_in(work, target, self._replaced(stage, key))
        except OSError as error:
            raise self._unusable(target, error) from None
        for name, entry in files.items():
            self._hashes.learn(target / name, entry["sha256"])
        self._hashes.save()
        return Artifact(stage, key, target)

    def _swap_in(self, work: Path, target: Path, replaced: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)  # no call swaps two folders everywhere; after a crash `locked` undoes this
        work.rename(target)
        sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def _replaced(self, stage: str, key: str) -> Path:
        return self.root / ".work" / f"{stage}-{key}-replaced"

    def _recover(self, stage: str, key: str) -> None:
        """Brings back what a crash left between the two renames of `_swap_in`, unless somebody is sealing right now."""
        try:
            with self.locked(stage, key, 0):
                pass
        except (TransientError, StoreError) as error:
            _log.debug("%s %s not brought back: %s", stage, key, error.problem)

    @contextmanager
    def locked(self, stage: str, key: str, wait_seconds: float) -> Iterator[None]:
        """Holds the lock of one key, and first brings back an artifact that a crash while replacing it left aside.

        Raises:
            TransientError: somebody else still holds it after `wait_seconds`; the message names them.
            StoreError: the lock's folder cannot be written.
        """
        path = self._lock(stage, key)
        try:
            with holding(path, wait_seconds, f"{stage} {key}"):
                self._bring_back(stage, key)
                yield
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
    """Deletes what has a name with a dot in front: a kill inside an atomic write left it, and it is no result."""
    for path in list(folder.rglob(".*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sealed_file(path: Path) -> dict[str, Any]:
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _readable(artifact: Artifact) -> bool:
    try:
        return bool(artifact.manifest)
    except StoreError:
        return False
