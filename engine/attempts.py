"""What an interrupted attempt says of itself: a note in its work folder of what it was to make, and who began it."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.files import write_atomically
from engine.fingerprint import canonical
from engine.processes import Process, this_process

NOTE = ".attempt.json"  # the dot keeps it out of the artifact: sealing removes it


@dataclass(frozen=True)
class Attempt:
    """An attempt at an artifact that was not sealed.

    Attributes:
        path: its work folder.
        payload: what the key was made of.
        began_at: when its last process began, in words.
        process: that process.
        forced: whether it was begun by force, so that nothing was taken over from before.
    """

    stage: str
    key: str
    path: Path
    payload: Mapping[str, Any]
    began_at: str
    process: Process
    forced: bool = False


def leave(work: Path, payload: Mapping[str, Any], *, forced: bool = False) -> None:
    """Notes in a work folder what is being made there, by whom, and whether by force. Raises OSError."""
    process = asdict(this_process())
    note = {"payload": payload, "began_at": time.strftime("%FT%T%z"), "process": process, "forced": forced}
    write_atomically(work / NOTE, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


def left_in(work: Path, stage: str) -> Attempt | None:
    """The attempt that a work folder of a stage holds; None when it does not say what it is of."""
    try:
        note = json.loads((work / NOTE).read_text("utf-8"))
        process = Process(int(note["process"]["pid"]), str(note["process"]["host"]), str(note["process"]["born"]))
        if not isinstance(note["payload"], dict):
            raise ValueError("no payload")
        canonical(note["payload"])
        key = work.name.removeprefix(f"{stage}-")
        forced = note.get("forced") is True  # notes of an earlier version do not say
        return Attempt(stage, key, work, note["payload"], str(note["began_at"]), process, forced)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
