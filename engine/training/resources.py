"""What the steps of a training run take: time, tokens and memory, one JSON line a step."""

import re
import sys
from pathlib import Path

import psutil
import torch

from engine.models.device_memory import device_memory
from engine.pace import Pace
from engine.training.journal import StepLines

_MARK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_TOLD = ("tokens_per_second", "memory_bytes")


class Resources:
    """Keeps `logs/resources.jsonl`: step, seconds, tokens, tokens_per_second, memory_bytes.

    `seconds` are of the step alone, without what listeners do between two of them. A run that goes on from a
    checkpoint keeps the lines before it. `memory_bytes` is the most that was held since this attempt began: what the
    process did before is not in it. They differ from run to run, so they stand apart from the steps' numbers.

    Attributes:
        pace: tokens a second over the last steps, as progress shows it; nothing before this attempt's first step.
    """

    def __init__(self, logs: Path, device: torch.device) -> None:
        self._lines = StepLines(logs / "resources.jsonl")
        self._peak = Peak(device)
        self._pace = Pace()
        self.pace: dict[str, int] = {}

    def add(self, step: int, seconds: float, tokens: int) -> dict[str, float]:
        """Keeps one step.

        Args:
            tokens: that went through the model for it.

        Returns:
            What of it is worth a tracker's curve: `tokens_per_second` and `memory_bytes`.
        """
        self.pace = self._pace.tokens(tokens, seconds)
        told = {"tokens_per_second": round(tokens / max(seconds, 1e-9), 1), "memory_bytes": self._peak.bytes()}
        self._lines.add(step, {"seconds": round(seconds, 6), "tokens": tokens, **told})
        return told

    def of(self, step: int) -> dict[str, float]:
        """What `add` returned of a step that an earlier attempt took; nothing where its line is not whole."""
        lines = [line for line in self._lines.lines if line["step"] == step and _is_whole(line)]
        return {name: line[name] for line in lines for name in _TOLD if name in line}

    def totals(self, steps: int) -> dict[str, float]:
        """Over the run's first `steps` steps, all attempts: `tokens`, `tokens_per_second`, `peak_memory_bytes`.

        Nothing where no line of them is left; a line that was damaged is missing from the sums.
        """
        lines = [line for line in self._lines.lines if line["step"] <= steps and _is_whole(line)]
        if not lines:
            return {}
        tokens, seconds = sum(line["tokens"] for line in lines), sum(line["seconds"] for line in lines)
        return {
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "peak_memory_bytes": max(line["memory_bytes"] for line in lines),
        }

    def sync(self) -> None:
        """Has every line on the disk before it returns. Raises OSError."""
        self._lines.sync()


def _is_whole(line: dict[str, object]) -> bool:
    """Whether its numbers are there, and such as a step can have; a rate may be missing."""
    numbers = [line.get(name) for name in ("seconds", "tokens", "memory_bytes")]
    return all(map(_is_amount, [*numbers, line.get("tokens_per_second", 0)]))


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.maxsize  # type: ignore[operator]


class Peak:
    """The most memory that was held since this began: of a CUDA device by torch's allocator, else by this process.

    Linux tells the process's own mark. Where that cannot be set back or read, what is held when it is asked for counts.
    """

    def __init__(self, device: torch.device, process: Path = Path("/proc/self")) -> None:
        self._device, self._status = device, process / "status"
        self._most = device_memory(device).standing()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._is_marked = device.type != "cuda" and _set_back(process)

    def bytes(self) -> int:
        """So far; it never falls."""
        self._most = max(self._most, self._held())
        return self._most

    def _held(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return (self._mark() if self._is_marked else None) or int(psutil.Process().memory_info().rss)

    def _mark(self) -> int | None:
        try:
            mark = _MARK.search(self._status.read_text("utf-8", errors="replace"))
        except OSError:
            return None
        return 1024 * int(mark[1]) if mark else None


def _set_back(process: Path) -> bool:
    """Whether Linux forgot the highest mark; the process's `ru_maxrss` counts anew, too."""
    try:
        (process / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
