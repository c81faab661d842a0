"""A folder in which attempts are made, and what may be said of it after each of them.

Everything is read here with nothing of the pipeline's own: neither its store nor its memory of hashes is asked.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof.lane import Lane
from proof.orders import Ended, Order
from proof.profile import FILE, NAMES, ROOTS, TEXT

_counter = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: the content of every stage's artifact, as `_content` has it, and the adapter's SHA-256."""

    digests: dict[str, str]
    adapter: str

    def differences(self, wanted: "Outcome") -> list[str]:
        """In what it is not the one that was wanted, in words."""
        found = [
            f"{name} has another content than in the run left alone"
            for name in NAMES
            if self.digests.get(name) != wanted.digests.get(name)
        ]
        return found if self.adapter == wanted.adapter else [*found, "the adapter's bytes differ"]


@dataclass(frozen=True)
class Place:
    """One work place, and the lane its attempts are made in.

    Attributes:
        logs: what attempts say is kept there; not below `folder`, which may be full or read-only.
    """

    folder: Path
    logs: Path
    lane: Lane
    settings: tuple[str, ...] = ()

    @classmethod
    def new(cls, folder: Path, lane: Lane, *settings: str) -> "Place":
        """A place with nothing but the profile; `settings` are further words for every attempt."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(TEXT, "utf-8")
        logs = folder.with_name(f"{folder.name}.said")
        logs.mkdir(exist_ok=True)
        return cls(folder, logs, lane, settings)

    def copy(self, name: str, *settings: str) -> "Place":
        """Another place beside this one, with all that is in it, and further words for its attempts."""
        place = Place.new(self.folder.with_name(name), self.lane, *self.settings, *settings)
        shutil.copytree(self.folder, place.folder, dirs_exist_ok=True)
        return place

    def order(self, *words: str, **more: Any) -> Order:
        """`dpo run` with the profile, or the words given."""
        said = words or ("run",)
        log = self.logs / f"{next(_counter):05}-{said[0]}"
        return Order(str(self.folder), [*said, "--profile", FILE, *self.settings], str(log), **more)

    def run(self, *words: str, **more: Any) -> Ended:
        """One attempt, to its end."""
        order = self.order(*words, **more)
        return self.lane.wait(self.lane.start(order), order)

    def manifests(self) -> dict[str, bytes]:
        """The manifest of everything sealed, by `stage/key`. It says when it was made: what is redone gets another."""
        return {f"{path.parts[-3]}/{path.parts[-2]}": path.read_bytes() for path in self._manifests()}

    def is_sealed(self, stage: str) -> bool:
        """Whether an artifact of the stage is there."""
        return any(path.parts[-3] == stage for path in self._manifests())

    def at_work(self) -> str:
        """The last stage that has begun and is not sealed, or nothing."""
        begun = [name for name in NAMES for root in ROOTS if any((self.folder / root / ".work").glob(f"{name}-*"))]
        return begun[-1] if begun and not self.is_sealed(begun[-1]) else ""

    def torn(self) -> list[str]:
        """Folders without a whole manifest, and files that are not as they were sealed, in words. Reads every byte."""
        folders = [
            path
            for root in ROOTS
            for name in NAMES
            for path in (self.folder / root / name).glob("*")
            if path.is_dir() and not path.name.startswith(".")
        ]
        return [f"{folder.parent.name}/{folder.name} {problem}" for folder in folders for problem in _torn(folder)]

    def outcome(self) -> Outcome:
        """What is sealed now; of every stage the last that was."""
        read = [(path, json.loads(path.read_text("utf-8"))) for path in self._manifests()]
        read.sort(key=lambda each: each[0].stat().st_mtime_ns)
        weights = [
            path.parent / "adapter" / "adapter_model.safetensors" for path, _ in read if path.parts[-3] == "train"
        ]
        digests = {manifest["stage"]: _content(manifest) for _, manifest in read}
        return Outcome(digests, sha256(weights[-1]) if weights and weights[-1].is_file() else "")

    def leftovers(self) -> list[str]:
        """Work folders of stages that are done, in words."""
        found = [path for root in ROOTS for name in NAMES for path in (self.folder / root / ".work").glob(f"{name}-*")]
        return [f"{path.name} was left in .work" for path in found]

    def finish(self, wanted: Outcome) -> list[str]:
        """Runs to the end and tells what is wrong with what is there then."""
        return self.finished(self.run(), wanted)

    def finished(self, ended: Ended, wanted: Outcome) -> list[str]:
        """What is wrong with what is there after an attempt that was to run to the end."""
        if ended.code != 0:
            return [ended.told]
        return [*self.torn(), *self.leftovers(), *self.outcome().differences(wanted)]

    def _manifests(self) -> Iterator[Path]:
        for root in ROOTS:
            for name in NAMES:
                yield from (self.folder / root / name).glob("*/manifest.json")


def redone(before: dict[str, bytes], after: dict[str, bytes], but: Sequence[str] = ()) -> list[str]:
    """Which of the artifacts that were sealed before are gone or were made again, but for those of the stages `but`."""
    changed = [name for name, manifest in before.items() if after.get(name) != manifest]
    return [f"{name} was sealed and is gone or made again" for name in changed if name.partition("/")[0] not in but]


def sha256(path: Path) -> str:
    """Of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _torn(folder: Path) -> Iterator[str]:
    try:
        files = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        yield f"has no whole manifest ({error})"
        return
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, sealed in files.items():
        if name not in there or (there[name].stat().st_size, sha256(there[name])) != (
            sealed["bytes"],
            sealed["sha256"],
        ):
            yield f"does not hold {name} as it was sealed"
    for name in there.keys() - set(files) - {"manifest.json"}:
        if any(part.startswith(".") for part in Path(name).parts):
            continue  # a kill left it beside the artifact's own; no stage reads it
        yield f"holds {name}, which was not sealed"


def _content(manifest: dict[str, Any]) -> str:
    """The digest of an artifact; promote's names the keys of others, which differ where the runtime is part of one."""
    if manifest["stage"] != "promote":
        return str(manifest["digest"])
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != "handed_down.json"}
    return json.dumps(files, sort_keys=True)
