"""Where artifacts live: `<root>/<stage>/<key>/`, sealed by a manifest that is written last.

A stage writes into `<root>/.work/<stage>-<key>/`, so that its next attempt finds what the last one left. Sealing
hashes and syncs every file, writes `manifest.json`, and renames the folder: a folder under `<stage>/` is whole or
is not there. What does not match its manifest is moved to `<root>/.quarantine/`, never deleted.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engine.errors import StoreError, TransientError
from engine.fingerprint import digest, file_digest

MANIFEST = "manifest.json"
AUXILIARY = "logs"  # files below this folder are sealed too, but are no part of the artifact's digest


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

    @property
    def config(self) -> Mapping[str, Any]:
        """The identity part of the config that made it."""
        config: Mapping[str, Any] = self.manifest["payload"]["config"]
        return config

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
        if not {"stage", "key", "digest", "payload", "files", "metrics"} <= set(manifest):
            raise ValueError("fields are missing")
    except (OSError, ValueError, TypeError) as error:
        raise StoreError("a manifest cannot be read", found=str(error), where=str(path)) from None
    return dict(manifest)


class Store:
    """The artifacts below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashes = HashMemory(root / ".hashes.json")

    def find(self, stage: str, key: str) -> Artifact | None:
        """The sealed artifact under that key, or None. Its files are not read: see `verify`."""
        artifact = Artifact(stage, key, self.root / stage / key)
        return artifact if (artifact.path / MANIFEST).is_file() else None

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
        problems = []
        for name, sealed in files.items():
            path = artifact.path / name
            if not path.is_file():
                problems.append(f"{name} is gone")
            elif path.stat().st_size != sealed["bytes"]:
                problems.append(f"{name} has {path.stat().st_size} bytes, sealed with {sealed['bytes']}")
            elif self._hashes.of(path) != sealed["sha256"]:
                problems.append(f"{name} does not have the content it was sealed with")
        self._hashes.save()
        return problems

    def quarantine(self, artifact: Artifact) -> Path:
        """Moves a broken artifact out of the way and returns where it is now."""
        target = self.root / ".quarantine" / f"{artifact.stage}-{artifact.key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        artifact.path.rename(target)
        return target

    def work(self, stage: str, key: str, *, fresh: bool = False) -> Path:
        """The folder a stage writes into before it is sealed; with `fresh`, emptied first.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self.root / ".work" / f"{stage}-{key}"
        try:
            if fresh:
                shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True, exist_ok=True)
            (path / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                "the artifact store cannot be written",
                found=str(error),
                where=str(path),
                fix="free the disk or its permissions, or set runtime.artifacts to another folder",
            ) from None
        return path

    def started(self, stage: str, key: str) -> bool:
        """Whether an earlier attempt left work under that key."""
        path = self.root / ".work" / f"{stage}-{key}"
        return path.is_dir() and any(path.iterdir())

    def seal(self, stage: str, key: str, work: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Makes the work folder the artifact: hash, sync, manifest last, one rename. Replaces an older one.

        Raises:
            StoreError: a file cannot be written or the folder cannot be moved.
        """
        target = self.root / stage / key
        try:
            files = {path.relative_to(work).as_posix(): _sealed_file(path) for path in _files(work)}
            content = {name: entry for name, entry in files.items() if not name.startswith(f"{AUXILIARY}/")}
            sealed = dict(manifest) | {"stage": stage, "key": key, "digest": digest(content), "files": files}
            write_atomically(work / MANIFEST, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")
            for folder in [path for path in work.rglob("*") if path.is_dir()] + [work]:
                _sync_folder(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            replaced = self.root / ".work" / f"{stage}-{key}-replaced"
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                target.rename(replaced)
            work.rename(target)
            _sync_folder(target.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"{stage} could not be sealed", found=str(error), where=str(target)) from None
        return Artifact(stage, key, target)

    @contextmanager
    def locked(self, stage: str, key: str, wait_seconds: float) -> Iterator[None]:
        """Holds the lock of one key; the kernel frees it when the holder dies.

        Raises:
            TransientError: somebody else still holds it after `wait_seconds`; the message names them.
            StoreError: the lock's folder cannot be written.
        """
        path = self.root / ".locks" / f"{stage}-{key}"
        owner = path.with_suffix(".owner")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise TransientError(
                f"another run is making {stage} {key}",
                found=owner.read_text("utf-8").strip() if owner.exists() else "an unknown holder",
                where=str(path),
                fix="wait for it, or stop it, and run again",
            ) from None
        except OSError as error:
            raise StoreError("the artifact store cannot be written", found=str(error), where=str(path)) from None
        try:
            owner.write_text(f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%F %T')}\n", "utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


class HashMemory:
    """Digests of files remembered by path, size, modification time and inode, so unchanged files are read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False

    @cached_property
    def _known(self) -> dict[str, list[Any]]:
        try:
            return dict(json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, read only when it is not known to be unchanged."""
        status = path.stat()
        mark = [status.st_size, status.st_mtime_ns, status.st_ino]
        name = str(path.resolve())
        known = self._known.get(name)
        if known is None or known[:3] != mark:
            known = self._known[name] = [*mark, file_digest(path)]
            self._changed = True
        return str(known[3])

    def save(self) -> None:
        """Writes what was learnt; losing it costs time only, so a failure is no error."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known))
            self._changed = False
        except OSError:
            pass


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that a reader sees the old or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sealed_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _readable(artifact: Artifact) -> bool:
    try:
        return bool(artifact.manifest)
    except StoreError:
        return False
