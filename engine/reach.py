"""What kept runs and the models in service reach: the artifacts they name, and all that those were made of."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.artifact import MANIFEST, Artifact
from engine.errors import StoreError
from engine.promotion.service import services
from engine.runs import RECORD, ROOTS, RunRecord, all_runs, mark_crashed, root_name

_UNTOLD = "it cannot be told which runs use the data"
_log = logging.getLogger("dpo")


@dataclass(frozen=True)
class Reach:
    """What is needed by the runs that are kept, and by what is in service.

    Attributes:
        named: stage and key of what their records name, and of what a version in service was made of. It serves to keep
            things, never to find what may go.
        since: when the earliest run began whose record cannot be read; what was sealed later may be its, named or not.
            Infinite when there is none.
        going: the runs that are not over. Nobody can tell yet what they will use.
    """

    named: frozenset[tuple[str, str]]
    since: float = float("inf")
    going: tuple[RunRecord, ...] = ()

    @classmethod
    def of_runs(cls, roots: Iterable[Path], old_seconds: float, keep_runs: int | None) -> "Reach":
        """The reach of the runs recorded below `roots` that are kept; first those that crashed are marked.

        Kept are those that are not over, and of each root the latest completed one of each profile, and the latest
        `keep_runs`, or all that are not older than `old_seconds`. The versions that `Service.kept` names are kept
        whatever their age.

        Raises:
            StoreError: it cannot be told what is in service below one of the roots.
        """
        named: set[tuple[str, str]] = set()
        going: list[RunRecord] = []
        since = float("inf")
        for root in roots:
            mark_crashed(root)
            found, unknown = _recorded(root)
            going += (now := [record for record in found if record.state == "running"])
            recent = found if keep_runs is None else found[:keep_runs]
            young = [each for each in recent if keep_runs is not None or time.time() - each.began <= old_seconds]
            named |= {pair for record in (*now, *young, *_last_completed(found)) for pair in _named(record)}
            named |= {part for service in services(root) for part in service.parts()}
            since = min(since, unknown)
        return cls(frozenset(named), since, tuple(going))

    def closed(self, known: Iterable[Artifact]) -> set[tuple[str, str]]:
        """Stage and key of what is named, and of all that was made from, by the digests in the manifests.

        Args:
            known: all that is sealed, and the manifests of what was removed.
        """
        known = list(known)
        by_digest: dict[tuple[str, str], list[Artifact]] = {}
        for artifact in known:
            by_digest.setdefault((artifact.stage, artifact.digest), []).append(artifact)
        reached: set[tuple[str, str]] = set()
        waiting = [artifact for artifact in known if (artifact.stage, artifact.key) in self.named]
        done: set[Path] = set()
        while waiting:
            artifact = waiting.pop()
            if artifact.path not in done:  # under one key another root may hold other content
                done.add(artifact.path)
                reached.add((artifact.stage, artifact.key))
                waiting += [above for pair in _inputs(artifact) for above in by_digest.get(pair, [])]
        return reached | self.named

    def may_use(self, artifact: Artifact) -> bool:
        """Whether a run of which nothing can be read may have made it."""
        try:
            return (artifact.path / MANIFEST).stat().st_mtime >= self.since
        except OSError:
            return True


def under_way(roots: Iterable[Path]) -> RunRecord | None:
    """A run recorded below `roots` that is not over right now; None when all that can be read are."""
    for folder in (folder for root in roots for folder in all_runs(root)):
        with suppress(StoreError):
            record = RunRecord.load(folder)
            if record.state == "running":
                return record
    return None


def run_roots(data: Path, artifacts: Path) -> list[Path]:
    """The roots below which runs on this data are recorded: `artifacts`, and all that were noted, gone or not.

    Raises:
        StoreError: it cannot be told which roots there are, or which runs one of them has.
    """
    found = {artifacts.resolve(): artifacts}
    for root in map(_noted, _listed(data / ROOTS)):
        found.setdefault(root, root)
    for root in found.values():
        _listed(root / "runs")
    return list(found.values())


def _noted(note: Path) -> Path:
    try:
        text = note.read_text("utf-8")
        if note.name != root_name(text):
            raise ValueError("it was damaged")
        return Path(text)
    except (OSError, ValueError) as error:
        fix = "delete this note; the next run that uses the data writes its own again"
        raise StoreError(_UNTOLD, found=str(error), where=str(note), fix=fix) from None


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, without what has a dot in front of its name; nothing where it is not there."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        fix = "have the folder made readable, or removed if no run of it matters any more"
        raise StoreError(_UNTOLD, found=str(error), where=str(folder), fix=fix) from None


def _recorded(root: Path) -> tuple[list[RunRecord], float]:
    """The runs recorded below a root, the latest first; and when the earliest began whose record cannot be read."""
    found, since = [], float("inf")
    for folder in all_runs(root):
        try:
            found.append(RunRecord.load(folder))
        except StoreError as error:
            _log.warning("%s\n  so nothing goes that was made since", error)
            since = min(since, _written(folder))
    return found, since


def _last_completed(found: list[RunRecord]) -> Iterator[RunRecord]:
    completed = {record.origin: record for record in reversed(found) if record.state == "completed"}
    yield from completed.values()


def _named(record: RunRecord) -> Iterator[tuple[str, str]]:
    yield from ((decision.stage, decision.key) for decision in record.decisions if decision.key is not None)


def _inputs(artifact: Artifact) -> list[tuple[str, str]]:
    inputs = artifact.manifest["payload"].get("inputs")
    return [(str(name), str(digest)) for name, digest in inputs.items()] if isinstance(inputs, dict) else []


def _written(folder: Path) -> float:
    """When a run that says nothing of itself began, at the latest: when its record or folder was last written."""
    try:
        return min((folder / RECORD).stat().st_mtime, folder.stat().st_mtime)
    except OSError:
        return 0.0
