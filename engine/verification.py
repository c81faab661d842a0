"""Reading every byte that was sealed or scored, whatever is remembered of it: `dpo verify`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.artifact import MANIFEST, Artifact
from engine.errors import StoreError, TransientError
from engine.preferences.score_store import SCORES, ScoreStore
from engine.promotion.pointer import CURRENT, PROMOTED, STAGE
from engine.promotion.service import Service, services
from engine.stage import Stage
from engine.store import Store


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one thing that was sealed.

    Attributes:
        name: what it is, for an artifact `<stage>/<key>`.
        path: where it was found.
        size_bytes: of its files; None where not known.
        problems: what is wrong with it; empty when every byte is as it was sealed.
        moved: where it was put; None when it lies where it was.
        note: why a broken one could not be moved; empty otherwise.
    """

    name: str
    path: Path
    size_bytes: int | None = None
    problems: Sequence[str] = ()
    moved: Path | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        return {
            "name": self.name,
            "path": str(self.path),
            "bytes": self.size_bytes,
            "problems": list(self.problems),
            "moved": str(self.moved) if self.moved else None,
            "note": self.note,
        }


def verify_all(stages: Iterable[Stage[Any]], data: Path, artifacts: Path, *, keep: bool = False) -> Iterator[Verdict]:
    """A verdict on every artifact of these stages under every key, below the two roots; one that is broken is moved
    to its store's quarantine under its key's lock, unless `keep`. Stops for nothing. With the stage `promote` also a
    verdict on every model in service as a whole: on it, its policy, made or given, its tokenizer and what leads to it.

    The memory of hashes is renewed by what is read, so that the next run knows what was found here.
    """
    stores, stages = {"data": Store(data), "artifacts": Store(artifacts)}, list(stages)
    for stage in stages:
        yield from _of_stage(stores[stage.keeps], stage.name, keep)
    if any(stage.name == STAGE for stage in stages):
        yield from _all_in_service(artifacts)


def verify_scores(data: Path, *, keep: bool = False) -> Iterator[Verdict]:
    """A verdict on the scores that are kept of each scorer; shards that are broken go to quarantine, unless `keep`."""
    store = ScoreStore(data / SCORES)
    for folder in store.scorers():
        name, size = f"{SCORES}/{folder.name}", sum(path.stat().st_size for path in folder.glob("*.parquet"))
        try:
            broken = store.verify(folder, keep=keep)
        except OSError as error:
            yield Verdict(name, folder, problems=["a broken shard cannot be moved"], note=f"left where it is: {error}")
            continue
        problems = [f"{path.name} does not have the content it was written with" for path, _ in broken]
        moved = broken[0][1].parent if broken and broken[0][1] else None
        yield Verdict(name, folder, size, problems, moved)


def _all_in_service(artifacts: Path) -> Iterator[Verdict]:
    try:
        found = services(artifacts)
    except StoreError as error:
        yield Verdict(PROMOTED, artifacts / PROMOTED, problems=[_in_a_line(error)])
        return
    for service in found:
        yield from _in_service(service)


def _in_service(service: Service) -> Iterator[Verdict]:
    name, note = f"{PROMOTED}/{service.name}", ""
    try:
        version = service.current()
        if version is None:
            return
        if problems := service.problems(version):
            note = f"what can be done: {service.way_back()}"
        elif not service.is_pointed():
            problems, note = [f"`{CURRENT}` does not lead to it"], "the next run mends that"
    except StoreError as error:
        yield Verdict(name, service.folder, problems=[_in_a_line(error)])
        return
    yield Verdict(f"{name}/{version}", service.folder, problems=problems, note=note)


def _in_a_line(error: StoreError) -> str:
    return " ".join(f"{error.problem}: {error.found}".split())


def _of_stage(store: Store, stage: str, keep: bool) -> Iterator[Verdict]:
    try:
        folders = store.folders(stage)
    except StoreError as error:
        yield Verdict(stage, store.root / stage, problems=[error.found])
        return
    for folder in folders:
        artifact = Artifact(stage, folder.name, folder)
        if not folder.exists():  # removed, or put aside by another run since it was listed
            continue
        problems = _problems(store, artifact, read_all=True)
        if problems and not keep:
            yield _put_aside(store, artifact, problems)
        else:
            yield _verdict(artifact, problems)


def _problems(store: Store, artifact: Artifact, *, read_all: bool) -> list[str]:
    try:
        sealed = (artifact.path / MANIFEST).is_file()
    except OSError as error:
        return [f"its folder cannot be read ({error})"]
    return store.verify(artifact, read_all=read_all) if sealed else [f"it has no {MANIFEST}"]


def _put_aside(store: Store, artifact: Artifact, problems: list[str]) -> Verdict:
    """Moves it to quarantine, if it is still there and still broken when its lock is held."""
    try:
        with store.locked(artifact.stage, artifact.key, 0):
            again = Artifact(artifact.stage, artifact.key, artifact.path)  # its manifest may be another one by now
            if again.path.is_dir() and not (still := _problems(store, again, read_all=False)):
                return _verdict(again, still)
            moved = store.quarantine(again) if again.path.is_dir() else None
    except TransientError as error:
        return _verdict(artifact, problems, note=f"left where it is: being made anew by {error.found}")
    except (StoreError, OSError) as error:
        found = error.found if isinstance(error, StoreError) else str(error)
        return _verdict(artifact, problems, note=f"left where it is: {found}")
    return _verdict(artifact, problems, moved=moved)


def _verdict(artifact: Artifact, problems: Sequence[str], *, moved: Path | None = None, note: str = "") -> Verdict:
    size = artifact.size_bytes if artifact.readable else None
    return Verdict(f"{artifact.stage}/{artifact.key}", artifact.path, size, problems, moved, note)
