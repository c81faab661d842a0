"""What a record of a run leads to: its artifacts, as far as anything is left of them, and when it began, in words."""

from typing import TYPE_CHECKING

from engine.artifact import Artifact
from engine.reports.markdown import plain
from engine.stage import Decision
from engine.store import Store

if TYPE_CHECKING:
    from engine.runs import RunRecord


def recorded(record: "RunRecord", stage: str) -> Artifact | None:
    """The artifact that a run made or used for a stage, or its manifest alone where the files are gone.

    Returns:
        None where the run did not come so far, or where not even the manifest can be read any more.
    """
    for decision in record.decisions:
        if decision.stage == stage and decision.key is not None:
            found = record.artifact(stage) or _pruned(record, decision, decision.key)
            return found if found is not None and found.readable else None
    return None


def _pruned(record: "RunRecord", decision: Decision, key: str) -> Artifact | None:
    """The manifest, where the run had it or beside the run's record, wherever that was moved to."""
    roots = [decision.path.parent.parent] if decision.path else []
    found = (Store(root).pruned(decision.stage, key) for root in (*roots, record.folder.parent.parent))
    return next((each for each in found if each), None)


def came_to(record: "RunRecord", stage: str) -> bool:
    """Whether a run had an artifact for a stage, whatever became of it since."""
    return any(each.stage == stage and each.key is not None for each in record.decisions)


def began(record: "RunRecord") -> str:
    """When a run began, as plain text: `2026-11-23 02:00 +0000`."""
    from engine.nights import began_at  # it reads records, which import the reports

    return plain(f"{began_at(record):%F %H:%M %z}")
