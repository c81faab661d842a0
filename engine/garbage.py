"""What nothing needs any more, found and removed: `dpo gc`.

Only folders and files that are found by listing the stores are ever removed, whatever a record says; links are never
followed; what somebody holds the lock of is left alone. A removal is one rename into `.trash` and the deletion of that,
so that one which is killed leaves nothing half. Of an artifact the manifest is kept.
"""

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.artifact import MANIFEST, Artifact
from engine.errors import StoreError, TransientError
from engine.files import sync, write_atomically
from engine.preferences.score_store import SCORES, ScoreStore
from engine.promotion.pointer import PROMOTED
from engine.promotion.service import services
from engine.reach import Reach, run_roots, under_way
from engine.runs import ROOTS
from engine.stage import Stage
from engine.store import PRUNED, QUARANTINE, REPLACED, WORK, Store

TRASH = ".trash"
DAY_SECONDS = 86_400.0
_ATOMIC = re.compile(r"\..+\.\d+-\d+")  # the temporary names of `write_atomically`
_HALF_WRITTEN_SECONDS = DAY_SECONDS  # one that is younger may be being written


@dataclass(frozen=True)
class Waste:
    """One thing that may go.

    Attributes:
        why: the reason, in words.
        size_bytes: what it frees.
        artifact: it, where the thing is a whole one.
        key: stage and key whose lock has to be held for the removal; None where nobody can be using it.
        usable: whether a run that begins may take it up: then it goes only while no run is under way.
    """

    path: Path
    why: str
    size_bytes: int
    store: Store
    artifact: Artifact | None = None
    key: tuple[str, str] | None = None
    usable: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        return {"path": str(self.path), "why": self.why, "bytes": self.size_bytes}


def find_waste(
    stages: Sequence[Stage[Any]], data: Path, artifacts: Path, *, older_than_days: float, keep_runs: int | None = None
) -> list[Waste]:
    """All that may go, in the order of the stores' parts; changes nothing but the records of runs that crashed.

    Runs of every artifacts root that draws on the data count, and so does what is in service there. While a run is
    under way, no artifact and no scores may go: it may come to use any.

    Args:
        older_than_days: how old a work folder, a quarantined thing or a run must be to count as old.
        keep_runs: how many runs are kept, the latest; None: all that are not old. The latest completed one of each
            profile is always kept, and so is one that is running.

    Raises:
        StoreError: a folder of the store cannot be read, or it cannot be told which runs there are, or what is in
            service.
    """
    stores = {"data": Store(data), "artifacts": Store(artifacts)}
    seconds = older_than_days * DAY_SECONDS
    runs = run_roots(data, artifacts)
    reach = Reach.of_runs(runs, seconds, keep_runs)
    found: list[Waste] = []
    roots = {store.root.resolve(): store for store in (*stores.values(), Store(data / SCORES))}
    for store in roots.values():
        try:
            found += [*_work(store, seconds), *_old(store, seconds), *_half_written(store)]
        except OSError as error:
            raise _unreadable(store.root, error) from None
    for stage in stages:
        found += _left_inside(stores[stage.keeps], stage.name)
    return found if reach.going else [*found, *_unused(stages, stores, runs, reach, seconds)]


def _unused(
    stages: Sequence[Stage[Any]], stores: Mapping[str, Store], runs: Sequence[Path], reach: Reach, seconds: float
) -> Iterator[Waste]:
    """Artifacts and scores of the own stores that no run needs, wherever it is recorded."""
    kept = {"data": [stores["data"]], "artifacts": [Store(root) for root in runs]}
    places = [(stage.name, store) for stage in stages for store in kept[stage.keeps]]
    sealed = [each for name, store in places for each in store.all(name)]
    needed = reach.closed([*sealed, *(each for name, store in places for each in store.all_pruned(name))])
    for stage in stages:
        yield from _unreached(stores[stage.keeps], stage.name, reach, needed)
    scorers = {str(each.metrics.get("scorer")) for each in sealed}
    yield from _scores(Store(stores["data"].root / SCORES), scorers, seconds)


def _unreached(store: Store, stage: str, reach: Reach, needed: set[tuple[str, str]]) -> Iterator[Waste]:
    if (store.root / stage).is_symlink():  # what lies behind it may be anybody's
        return
    for artifact in store.all(stage):
        if (stage, artifact.key) not in needed and not reach.may_use(artifact):
            yield _waste(store, artifact.path, "no kept run reaches it", artifact=artifact)


def _left_inside(store: Store, stage: str) -> Iterator[Waste]:
    """What an attempt would have gone on from and a kill left in the sealed folder, right after it was renamed."""
    for folder in store.folders(stage):
        for path in _listed(folder):
            if path.name.startswith(".") and not store.holder(stage, folder.name):
                yield _waste(store, path, "left from its making", key=(stage, folder.name))


def _scores(store: Store, kept: Collection[str], seconds: float) -> Iterator[Waste]:
    """The scores of single pairs of a scorer that nobody needed for long and that no sealed artifact names."""
    for path in ScoreStore(store.root).scorers():
        try:
            if path.name not in kept and (idle := _age(path.stat().st_mtime)) > seconds:
                yield _waste(store, path, f"scores that no run took over for {_days(idle)}", usable=True)
        except OSError as error:
            raise _unreadable(store.root, error) from None


def remove(waste: Waste, data: Path, artifacts: Path) -> str:
    """Removes one thing. Returns why it was left alone, in words; nothing when it is gone. Raises nothing.

    Args:
        data, artifacts: the roots: a run on them may have begun since the thing was found.
    """
    try:
        with _guard(waste):
            if waste.usable and (run := under_way(run_roots(data, artifacts))):
                return f"run {run.id} has begun"
            if waste.artifact and _in_service(waste.artifact, run_roots(data, artifacts)):
                return "it was put into service"
            if waste.artifact:
                _keep_manifest(waste.store, waste.artifact)
            _throw_away(waste.store.root, waste.path)
    except FileNotFoundError:
        return ""  # somebody else removed it
    except TransientError as error:
        return f"in use by {error.found}"
    except StoreError as error:
        return error.found or error.problem
    except OSError as error:
        return str(error)
    return ""


def _guard(waste: Waste) -> AbstractContextManager[object]:
    return waste.store.locked(*waste.key, 0) if waste.key else nullcontext()


def _in_service(artifact: Artifact, roots: Sequence[Path]) -> bool:
    """Whether a version that must stay was made of it, by now."""
    return any((artifact.stage, artifact.key) in service.parts() for root in roots for service in services(root))


def _keep_manifest(store: Store, artifact: Artifact) -> None:
    place = store.root / PRUNED / artifact.stage / artifact.key
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / MANIFEST, (artifact.path / MANIFEST).read_text("utf-8"))
    for folder in (place.parent, place.parent.parent):
        sync(folder)


def _throw_away(root: Path, path: Path) -> None:
    if path.parent.name == TRASH:
        trashed = path
    else:
        trashed = root / TRASH / f"{path.name.lstrip('.')}-{time.time_ns()}"
        trashed.parent.mkdir(exist_ok=True)
        path.rename(trashed)
        sync(path.parent)
    if trashed.is_dir() and not trashed.is_symlink():
        shutil.rmtree(trashed)
    else:
        trashed.unlink()


def _work(store: Store, seconds: float) -> Iterator[Waste]:
    """Work folders that no attempt needs, and what a replaced artifact left behind."""
    for path in _folders(store.root / WORK):
        stage, _, key = path.name.partition("-")
        key, replaced = key.removesuffix(REPLACED), key.endswith(REPLACED)
        if not key or store.holder(stage, key):
            continue
        sealed = (store.root / stage / key / MANIFEST).is_file()
        if sealed:
            why = "was replaced" if replaced else "its key is sealed"
            yield _waste(store, path, why, key=(stage, key))
        elif not replaced and (idle := _idle_seconds(path)) > seconds:
            yield _waste(store, path, f"untouched for {_days(idle)}", key=(stage, key))


def _old(store: Store, seconds: float) -> Iterator[Waste]:
    for path in _listed(store.root / QUARANTINE):
        if (age := _quarantined_seconds(path)) > seconds:
            yield _waste(store, path, f"in quarantine for {_days(age)}")
    for path in _listed(store.root / TRASH):
        yield _waste(store, path, "a removal was interrupted")


def _half_written(store: Store) -> Iterator[Waste]:
    """What a kill left of atomic writes, where no stage's sealing clears it away."""
    inside = [
        store.root / ROOTS,
        *_folders(store.root / PROMOTED),
        *_folders(store.root / "runs"),
        *ScoreStore(store.root).scorers(),
    ]
    for path in [each for folder in (store.root, *inside) for each in _listed(folder)]:
        if _ATOMIC.fullmatch(path.name) and path.is_file() and _age(path.lstat().st_mtime) > _HALF_WRITTEN_SECONDS:
            yield _waste(store, path, "half written")


def _waste(
    store: Store,
    path: Path,
    why: str,
    *,
    artifact: Artifact | None = None,
    key: tuple[str, str] | None = None,
    usable: bool = False,
) -> Waste:
    key = (artifact.stage, artifact.key) if artifact else key
    size_bytes = sum(entry.st_size for entry in _tree(path))
    return Waste(path, why, size_bytes, store, artifact, key, usable or artifact is not None)


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.is_symlink()) if _is_own_folder(folder) else []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir()]


def _is_own_folder(folder: Path) -> bool:
    """Whether it is a folder; one of the store's own parts that is a link to elsewhere is none."""
    return folder.is_dir() and not (folder.is_symlink() and (folder.name.startswith(".") or folder.name == "runs"))


def _tree(path: Path) -> Iterator[os.stat_result]:
    """The status of a file, or of everything below a folder and of itself, links not followed."""
    yield path.lstat()
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            try:
                yield (Path(folder) / name).lstat()
            except FileNotFoundError:  # whoever holds the rest is at work
                continue


def _idle_seconds(path: Path) -> float:
    return _age(max(entry.st_mtime for entry in _tree(path)))


def _quarantined_seconds(path: Path) -> float:
    stamp = path.name.rpartition("-")[2]
    return _age(int(stamp) / 1e9 if stamp.isdecimal() and len(stamp) < 21 else path.lstat().st_mtime)


def _age(moment: float) -> float:
    """Seconds since a moment; one that lies ahead, since the clock was set back, is no age at all."""
    return max(0.0, time.time() - moment)


def _days(seconds: float) -> str:
    return f"{int(seconds // DAY_SECONDS)} days"


def _unreadable(root: Path, error: OSError) -> StoreError:
    return StoreError(f"the artifact store {root} cannot be read", found=str(error), where=str(error.filename or root))
