"""Records of runs: `<root>/runs/<id>/run.json`, true at every moment of the run, and its reports at its end.

`report.md` is the short one, `report.html` the whole one with pictures. Record and artifacts are all they are made of.

Below the root of the data it is noted which roots of artifacts draw on it: `<data>/.roots/<digest>` holds a path.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from engine.artifact import Artifact
from engine.config import Settings, one_name
from engine.environment import environment
from engine.errors import StoreError
from engine.files import write_atomically
from engine.fingerprint import digest
from engine.processes import Process, is_gone, this_process
from engine.secrets import redacted
from engine.selection import Selection
from engine.stage import Decision

RECORD, REPORT, PAGE = "run.json", "report.md", "report.html"
ROOTS = ".roots"
_UNSAVED = ("folder", "decisions", "_clock")
_STAMP = "%Y%m%d-%H%M%S"
_log = logging.getLogger("dpo")


@dataclass
class RunRecord:
    """What one run was asked and what became of it. Keeping it never fails the run: trouble is a warning.

    Attributes:
        id: sorts by time: `YYYYmmdd-HHMMSS-<profile>`, with a number behind it where that is taken.
        folder: where `run.json` and the reports are.
        state: `running`, `completed`, `failed`, `cancelled`, or `crashed`: its process is gone without a word.
        selection: what `--only`, `--from`, `--until` and `--force` said.
        config: everything in force, in the shape of a profile.
        changed: dotted key and value of what differs from the defaults.
        decisions: what became of each stage so far, in order.
        pid, host, process_born: the process that runs it, as `engine.processes.Process` has it; in a record of an
            earlier version they are not known.
        origin: the profile by the one name that `one_name` gives it, however it was called; runs are told apart by it.
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
    pid: int = 0
    host: str = ""
    process_born: str = ""
    origin: str = ""
    _clock: float = field(default_factory=time.monotonic, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.origin = self.origin or one_name(self.profile)  # now, since a relative path holds in this folder only

    @property
    def process(self) -> Process:
        """The process that runs it."""
        return Process(self.pid, self.host, self.process_born)

    @classmethod
    def start(cls, settings: Settings, selection: Selection, root: Path) -> "RunRecord":
        """A new record below `root`/runs; `root` is the root of the artifacts. Runs found dead there are marked so."""
        mark_crashed(root)
        _register(settings.runtime.data, root)
        folder, process = _new_folder(root / "runs", settings.profile), this_process()
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
            pid=process.pid,
            host=process.host,
            process_born=process.born,
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
        """Notes how the run ended and writes its reports."""
        self._end(state, error, round(time.monotonic() - self._clock, 3))

    def crash(self) -> None:
        """Notes that its process ended without noting anything, and writes its short report.

        Its page is drawn when somebody asks for it: this is done by a run that is about to begin.
        """
        self._end(
            "crashed",
            f"{self.process} is gone without a word: it was killed, or its machine went down",
            None,
            drawn=False,
        )

    def _end(self, state: str, error: str, seconds: float | None, *, drawn: bool = True) -> None:
        from engine.reports import run as reports  # it reads records, so it imports this module

        self.state, self.error, self.seconds = state, error, seconds
        self._save()
        try:
            write_atomically(self.folder / REPORT, reports.run_report(self))
            if drawn:
                reports.write_report(self)
            else:
                (self.folder / PAGE).unlink(missing_ok=True)  # of when it was under way
        except Exception as trouble:  # no fault of a report may change how a run ends
            _log.warning("the report of run %s was not written: %s", self.id, trouble)

    def artifact(self, stage: str) -> Artifact | None:
        """The artifact the run made or reused for a stage, if it is still there."""
        for decision in self.decisions:
            if decision.stage == stage and decision.path is not None and decision.key is not None:
                place = next((each for each in self._places(decision.path, stage, decision.key) if each.is_dir()), None)
                return Artifact(stage, decision.key, place) if place else None
        return None

    def _places(self, path: Path, stage: str, key: str) -> Iterator[Path]:
        """Where an artifact may be: beside this record, and else where the run had it.

        So a copy tells of the copied artifacts, whatever became of the original's; and a relative path, which holds in
        the run's own working directory only, is not needed.
        """
        root = self.folder.parent.parent
        yield root / stage / key
        # without a working directory, or in a record of another version, it is known only where the run had it
        with contextlib.suppress(KeyError, TypeError, ValueError, OSError):
            data_from_here = os.path.relpath(self.config["runtime"]["data"], self.config["runtime"]["artifacts"])
            yield root / data_from_here / stage / key
        yield path

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """The record kept in a folder. Raises StoreError when it cannot be read."""
        try:
            kept = json.loads((folder / RECORD).read_text("utf-8"))
            kept["decisions"] = kept.pop("stages")
            return _checker().validate_python(kept | {"folder": folder})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError("a run's record cannot be read", found=str(error), where=str(folder / RECORD)) from None

    def _save(self) -> None:
        kept = {name: value for name, value in vars(self).items() if name not in _UNSAVED}
        kept = redacted(kept | {"stages": [decision.as_dict() for decision in self.decisions]})
        try:
            write_atomically(self.folder / RECORD, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        except (OSError, ValueError, TypeError) as error:
            _log.warning("the record of run %s was not written: %s", self.id, error)


@cache
def _checker() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def all_runs(root: Path) -> list[Path]:
    """The folders of every recorded run below `root`, the latest first."""
    return sorted((path.parent for path in (root / "runs").glob(f"*/{RECORD}")), key=lambda path: path.name)[::-1]


def latest(root: Path) -> RunRecord | None:
    """The record of the latest run below `root` that can be read."""
    return next(records(root), None)


def records(root: Path) -> Iterator[RunRecord]:
    """The records of the runs below `root` that can be read, the latest first; the others are warned of."""
    for folder in all_runs(root):
        try:
            yield RunRecord.load(folder)
        except StoreError as error:
            _log.warning("%s", error)


def mark_crashed(root: Path) -> list[str]:
    """Marks the runs below `root` that say they are running and whose process on this host is gone. Returns their ids.

    A run of another host or container is left alone: nobody here can tell. Several may do this at once.
    """
    marked = []
    for folder in all_runs(root):
        try:
            record = RunRecord.load(folder)
            if record.state != "running" or not is_gone(record.process):
                continue
            record = RunRecord.load(folder)  # what it wrote last: it may have ended properly since it was read
            if record.state == "running":
                record.crash()
                marked.append(record.id)
        except StoreError:
            continue  # whoever needs it is told
    return marked


def root_name(root: str) -> str:
    """The name of the note that a root of artifacts has in `<data>/.roots/`."""
    return digest(root)[:16]


def _register(data: Path, root: Path) -> None:
    text = str(root.resolve())
    note = data / ROOTS / root_name(text)
    try:
        if not note.is_file() or note.read_text("utf-8", "replace") != text:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, text)
    except (OSError, ValueError) as error:
        _log.warning("`dpo gc` from another artifacts folder will not know of this run: %s", error)


def maker(root: Path, stage: str, key: str) -> str:
    """The id of the latest recorded run that made an artifact; nothing where no record says."""
    return _id_of(root, lambda record: any(_made(each, stage, key) for each in record.decisions))


def run_of(root: Path, process: Process) -> str:
    """The id of the latest recorded run that a process was; nothing where no record says."""
    return _id_of(root, lambda record: record.process == process)


def _id_of(root: Path, wanted: Callable[[RunRecord], bool]) -> str:
    return next((record.id for record in records(root) if wanted(record)), "")


def _made(decision: Decision, stage: str, key: str) -> bool:
    return (decision.stage, decision.key) == (stage, key) and decision.action in ("run", "resume")


def _new_folder(runs: Path, profile: str) -> Path:
    name = re.sub(r"[^\w.-]+", "_", Path(profile).stem) or "profile"
    wanted = f"{_stamp(runs)}-{name}"
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


def _stamp(runs: Path) -> str:
    """The time for a new id: now, or a second after the latest id where the clock was set back since."""
    now = datetime.now().replace(microsecond=0)
    last = max(filter(None, map(_moment, runs.glob("*"))), default=now)
    try:
        return (now if last <= now else last + timedelta(seconds=1)).strftime(_STAMP)
    except OverflowError:
        return now.strftime(_STAMP)


def _moment(folder: Path) -> datetime | None:
    try:
        return datetime.strptime(folder.name[: len("YYYYmmdd-HHMMSS")], _STAMP)
    except ValueError:
        return None
