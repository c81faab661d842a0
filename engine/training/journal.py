"""What a training run leaves behind of its steps: one JSON line each, and what trackers are told through accelerate."""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.files import sync, write_atomically

if TYPE_CHECKING:
    from accelerate import Accelerator

    from engine.training.listening import StepRecord

_log = logging.getLogger("dpo")


class StepLines:
    """A file of JSON lines, each with the `step` it was written at, that a run goes on with after an interruption.

    The first line of an attempt decides what stays of the earlier ones: the lines of the steps before it. So every
    step stands there as if there had been one attempt.

    Attributes:
        lines: what stands in the file, or will once the first line is added.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._begun = False
        self.lines = _read(path)

    def add(self, step: int, content: dict[str, Any]) -> None:
        """Writes one line; steps never fall within an attempt."""
        if not self._begun:
            self.lines = [line for line in self.lines if line["step"] < step]
            write_atomically(self._path, "".join(map(_line, self.lines)))
            self._begun = True
        self.lines.append({"step": step, **content})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(self.lines[-1]))

    def sync(self) -> None:
        """Has every line on the disk before it returns. Raises OSError."""
        if self._begun:
            sync(self._path)
            sync(self._path.parent)


class Journal:
    """Keeps step records in `logs/steps.jsonl`, and tells them to the accelerator's trackers. A context manager.

    Nobody goes on from what the trackers write, and one in trouble is left out; see `trackers.Guarded`.
    """

    def __init__(self, logs: Path, accelerator: "Accelerator", run: str) -> None:
        self._steps = StepLines(logs / "steps.jsonl")
        self._accelerator = accelerator
        self._run = run

    @property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """The steps that are kept, each with its numbers; see `StepLines`."""
        return self._steps.lines

    def add(self, record: "StepRecord", taken: Mapping[str, float] | None = None) -> None:
        """Keeps one step.

        Args:
            taken: numbers for the trackers alone, such as tokens a second: they are never the same twice.
        """
        self._steps.add(record.step, record.numbers)
        self._accelerator.log({**record.numbers, **(taken or {})}, step=record.step)

    def begin(self, step: int) -> None:
        """Says so when the file lacks steps of those before `step`, which a checkpoint brought back."""
        kept = {line["step"] for line in self._steps.lines}
        lacking = sum(before not in kept for before in range(1, step + 1))
        if lacking:
            _log.warning("logs/steps.jsonl was damaged: it lacks %d of the first %d steps", lacking, step)

    def sync(self) -> None:
        """Has every step that was added on the disk before it returns. Raises OSError."""
        self._steps.sync()

    def __enter__(self) -> "Journal":
        self._accelerator.init_trackers(self._run)
        self._hook, threading.excepthook = threading.excepthook, self._quietly
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the trackers' runs, which hear how the training ended: well, by an error, or by a stop."""
        outcome = "finished" if kind is None else "failed" if issubclass(kind, Exception) else "killed"
        try:
            self._end(outcome)
        except BaseException:  # a stop while one was ended: the others are still to be ended, and quickly
            self._end("killed")
            raise
        finally:
            threading.excepthook = self._hook

    def _end(self, outcome: str) -> None:
        for tracker in self._accelerator.trackers:
            tracker.outcome = outcome
        self._accelerator.end_training()

    def _quietly(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's own thread writes; what ends it is raised again in the next call, and needs no traceback."""
        if type(failed.thread).__module__.partition(".")[0] != "tensorboard":
            self._hook(failed)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a power cut may have left half of one, or other bytes, anywhere."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines
