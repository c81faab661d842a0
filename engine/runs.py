"""Records of runs: `<root>/runs/<id>/run.json`, true at every moment of the run, and `report.md` at its end."""

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.config import Settings
from engine.environment import environment
from engine.errors import StoreError
from engine.files import write_atomically
from engine.pipeline import Selection
from engine.stage import Decision
from engine.store import Artifact

RECORD, REPORT = "run.json", "report.md"
_log = logging.getLogger("dpo")


@dataclass
class RunRecord:
    """What one run was asked and what became of it. Keeping it never fails the run: trouble is a warning.

    Attributes:
        id: sorts by time: `YYYYmmdd-HHMMSS-<profile>`, with a number behind it where that is taken.
        folder: where `run.json` and `report.md` are.
        state: `running`, `completed`, `failed` or `cancelled`; a killed run stays `running`.
        selection: what `--only`, `--from`, `--until` and `--force` said.
        config: everything in force, in the shape of a profile.
        changed: dotted key and value of what differs from the defaults.
        decisions: what became of each stage so far, in order.
    """

    id: str
    folder: Path
    profile: str
    overrides: list[str]
    selection: dict[str, Any]
    config: dict[str, Any]
    changed: dict[str, Any]
    environment: dict[str, str]
    started_at: str
    began: float
    state: str = "running"
    error: str = ""
    seconds: float | None = None
    decisions: list[Decision] = field(default_factory=list)

    @classmethod
    def start(cls, settings: Settings, selection: Selection, root: Path) -> "RunRecord":
        """A new record below `root`/runs; `root` is the root of the artifacts."""
        folder = _new_folder(root / "runs", settings.profile)
        record = cls(
            id=folder.name,
            folder=folder,
            profile=settings.profile,
            overrides=list(settings.overrides),
            selection=asdict(selection),
            config=settings.as_dict(),
            changed=settings.changed(),
            environment=dict(environment()),
            started_at=time.strftime("%FT%T%z"),
            began=time.time(),
        )
        record._save()
        return record

    def add(self, decision: Decision, artifact: Artifact | None) -> None:
        """Notes what became of a stage; a second word on the same stage replaces the first."""
        if artifact is not None and decision.path is None:
            decision = Decision(
                decision.stage, decision.action, decision.why, artifact.key, artifact.path, decision.seconds
            )
        self.decisions = [*(each for each in self.decisions if each.stage != decision.stage), decision]
        self._save()

    def finish(self, state: str, error: str = "") -> None:
        """Notes how the run ended and writes its report."""
        from engine.reports.run import run_report  # it reads records, so it imports this module

        self.state, self.error, self.seconds = state, error, round(time.time() - self.began, 3)
        self._save()
        try:
            write_atomically(self.folder / REPORT, run_report(self))
        except Exception as trouble:  # no fault of a report may change how a run ends
            _log.warning("the report of run %s was not written: %s", self.id, trouble)

    def artifact(self, stage: str) -> Artifact | None:
        """The artifact the run made or reused for a stage, if it is still there."""
        for decision in self.decisions:
            if decision.stage == stage and decision.path is not None and decision.key is not None:
                return Artifact(stage, decision.key, decision.path) if decision.path.is_dir() else None
        return None

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """The record kept in a folder. Raises StoreError when it cannot be read."""
        try:
            kept = json.loads((folder / RECORD).read_text("utf-8"))
            decisions = [_decision(each) for each in kept.pop("stages")]
            return cls(folder=folder, decisions=decisions, **kept)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError("a run's record cannot be read", found=str(error), where=str(folder / RECORD)) from None

    def _save(self) -> None:
        kept = {name: value for name, value in vars(self).items() if name not in ("folder", "decisions")}
        kept["stages"] = [decision.as_dict() for decision in self.decisions]
        try:
            write_atomically(self.folder / RECORD, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        except (OSError, ValueError, TypeError) as error:
            _log.warning("the record of run %s was not written: %s", self.id, error)


def all_runs(root: Path) -> list[Path]:
    """The folders of every recorded run below `root`, the latest first."""
    return sorted((path.parent for path in (root / "runs").glob(f"*/{RECORD}")), key=lambda path: path.name)[::-1]


def latest(root: Path) -> RunRecord | None:
    """The record of the latest run below `root` that can be read."""
    for folder in all_runs(root):
        try:
            return RunRecord.load(folder)
        except StoreError as error:
            _log.warning("%s", error)
    return None


def _new_folder(runs: Path, profile: str) -> Path:
    name = re.sub(r"[^\w.-]+", "_", Path(profile).stem) or "profile"
    wanted = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for attempt in range(1, 100):
        folder = runs / (wanted if attempt == 1 else f"{wanted}-{attempt:02}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            _log.warning("this run will not be recorded: %s", error)
        return folder
    return folder


def _decision(kept: Mapping[str, Any]) -> Decision:
    path = Path(kept["path"]) if kept["path"] else None
    return Decision(kept["stage"], kept["action"], kept["why"], kept["key"], path, kept["seconds"])
