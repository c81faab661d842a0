"""What a training run leaves behind of its steps: one JSON line each, and a tracker's events through accelerate."""

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from engine.files import write_atomically

if TYPE_CHECKING:
    from accelerate import Accelerator

    from engine.training.loop import StepRecord


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
            self._begun = True
            self.lines = [line for line in self.lines if line["step"] < step]
            write_atomically(self._path, "".join(map(_line, self.lines)))
        self.lines.append({"step": step, **content})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(self.lines[-1]))


class Journal:
    """Keeps step records in `logs/steps.jsonl`, and tells them to the accelerator's trackers. A context manager."""

    def __init__(self, logs: Path, accelerator: "Accelerator", run: str) -> None:
        self._steps = StepLines(logs / "steps.jsonl")
        self._accelerator = accelerator
        accelerator.init_trackers(run)

    def add(self, record: "StepRecord") -> None:
        """Keeps one step."""
        self._steps.add(record.step, record.numbers)
        self._accelerator.log(record.numbers, step=record.step)

    def closing_means(self) -> dict[str, float]:
        """Each number's mean over the last tenth of the steps: one step alone says little."""
        lines = self._steps.lines
        tail = lines[-max(1, len(lines) // 10) :]
        return {name: fmean(line[name] for line in tail) for name in (tail[-1] if tail else {}) if name != "step"}

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._accelerator.end_training()


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines there are; a power cut may have left half of one at the end."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        lines.append(line)
    return lines
