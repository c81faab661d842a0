"""A run as Prefect's UI shows it while it goes on: what each stage does, how far it is, and what it made."""

import logging
import time
from collections.abc import Mapping
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from engine.reports.markdown import duration
from engine.runs import RunRecord
from engine.stage import Decision, Listener
from engine.store import Artifact
from flows._line import Line
from flows._pages import publish_stage, tag_key
from flows._progress import SEPARATOR, Work

PROGRESS_SECONDS = 2.0  # the least time between two updates of one progress artifact
_UNITS = {"download": "row", "tokenize": "row", "sft": "step", "reference": "pair", "train": "step"}
_log = logging.getLogger("dpo")


class Board(Listener):
    """Shows a run in Prefect's UI and keeps its record. What cannot be shown is logged and fails no stage."""

    def __init__(self, record: RunRecord, line: Line) -> None:
        self._record, self._line = record, line
        self._shown: dict[str, UUID] = {}
        self._work: dict[str, Work] = {}
        self._next = 0.0
        self._key = ""

    def started(self, decision: Decision) -> None:
        self._tag(decision)
        _log.info("%s: %s (%s)", decision.stage, decision.action, decision.why)

    def progressed(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Shows how far a stage is; one that is over within seconds shows its result and no progress."""
        now = time.monotonic()
        if stage not in self._work or done < self._work[stage].done:  # it begins, or another attempt at it
            self._work[stage], self._next = Work(time.monotonic), now + PROGRESS_SECONDS
        work = self._work[stage]
        work.reached(done, total, numbers)
        if total > 0 and now >= self._next:
            self._show(stage, min(100.0 * done / total, 100.0), progress_text(work, _UNITS.get(stage, "")))
            self._next = now + PROGRESS_SECONDS

    def _show(self, stage: str, percent: float, text: str) -> None:
        def show() -> None:
            if stage in self._shown:
                update_progress_artifact(self._shown[stage], progress=percent, description=text)
            else:
                key = f"dpo-{stage}-progress"
                self._shown[stage] = create_progress_artifact(percent, key=key, description=text)  # type: ignore[assignment]

        self._line.tell(f"the progress of {stage}", show, during=stage)

    def finished(self, decision: Decision, artifact: Artifact | None) -> None:
        self._record.add(decision, artifact)
        self._tag(decision)
        stage = decision.stage
        if stage in self._shown:  # a stage that stops early is over, too
            self._show(stage, 100.0, over_text(self._work[stage], decision.seconds, _UNITS.get(stage, "")))
        publish_stage(self._line, decision, artifact)

    def _tag(self, decision: Decision) -> None:
        """Tags the run with the key of its training once that is known, so that runs of one adapter are found."""
        if decision.stage == "train" and decision.key and decision.key != self._key:
            self._key = key = decision.key
            self._line.tell("the run's tags", lambda: tag_key(key), during=decision.stage)


def progress_text(work: Work, unit: str = "") -> str:
    """One line such as `step 120 of 450 · loss 0.612 · 12,345 tokens/s · 1 min 20 s left`.

    Args:
        unit: what is counted.
    """
    first, *rest = (part.rstrip() for part in work.parts())
    return SEPARATOR.join([f"{unit} {first}".lstrip(), *rest])


def over_text(work: Work, seconds: float | None, unit: str = "") -> str:
    """The same of a stage that is over, wherever it stopped: how long it took in place of the time left."""
    told = progress_text(work, unit)
    if work.left is not None:
        told = told.rpartition(SEPARATOR)[0]
    return f"{told}{SEPARATOR}done" + (f" in {duration(seconds)}" if seconds is not None else "")
