"""A sealed folder and its manifest: what a stage made, from what, and the digest of every byte of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import StoreError

MANIFEST = "manifest.json"
HANDED_DOWN = "handed_down.json"  # what the stages below read of a stage besides its tables and weights
AUXILIARY = "logs"  # files below this folder are sealed too, but are no part of the artifact's digest
_FIELDS = {"stage": str, "key": str, "digest": str, "payload": dict, "files": dict, "metrics": dict, "seal": str}


@dataclass(frozen=True)
class Artifact:
    """A sealed folder. `digest` depends on the content of its files only, so equal content is the same input.

    Attributes:
        path: its folder; of a pruned artifact a folder with nothing but its manifest.
        pruned: whether its files were removed and only its manifest was kept.
    """

    stage: str
    key: str
    path: Path
    pruned: bool = False

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The parsed manifest. Raises StoreError when it cannot be read or is another artifact's."""
        return _read(self)

    @property
    def readable(self) -> bool:
        """Whether the manifest can be read."""
        try:
            return bool(self.manifest)
        except StoreError:
            return False

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over the names and contents of the files outside `logs/`."""
        return str(self.manifest["digest"])

    @property
    def size_bytes(self) -> int:
        """How much its files hold, without the manifest."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

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

    def strangers(self) -> list[str]:
        """Names of the files and links in its folder that were not sealed with it, sorted.

        A name that begins with a dot is none: no such file is ever sealed or read. Raises StoreError, OSError.
        """
        sealed = self.manifest["files"]
        return sorted(name for name in _names(self.path) if name not in sealed and name != MANIFEST)


def seal_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's other fields, so that a changed metric or key is noticed like a changed file."""
    rest = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(artifact: Artifact) -> Mapping[str, Any]:
    path = artifact.path / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), kind) for k, kind in _FIELDS.items()):
            raise ValueError("fields are missing")
        if manifest["seal"] != seal_of(manifest):
            raise ValueError("it was changed after it was sealed")
        if (manifest["stage"], manifest["key"]) != (artifact.stage, artifact.key):
            raise ValueError(f"it is that of {manifest['stage']}/{manifest['key']}")
        if not all(_is_sound(name, entry) for name, entry in manifest["files"].items()):
            raise ValueError("its list of files makes no sense")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError("a manifest cannot be read", found=str(error), where=str(path)) from None
    return manifest


def _is_sound(name: str, entry: object) -> bool:
    """Whether a line of a manifest's list is a file inside the folder, with its size and digest."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\0" not in name
    known = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
    return inside and known


def _names(folder: Path, at: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = f"{at}{path.name}"
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _names(path, f"{name}/")
        else:
            yield name
