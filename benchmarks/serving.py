"""A side of the comparison as a process that waits for commands: a line of JSON each way, over stdin and stdout.

The clock and the memory gauge are here, so that they are the same for every side. What is not to be timed (loading,
building a trainer, putting the adapter back to its start) happens before the clock starts.
"""

import ctypes
import gc
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Work = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """What a side is to work on.

    Attributes:
        folder: a workload (benchmarks/workload.py).
        dtype: of the frozen weights, "float32" or "bfloat16".
        device: "cpu" or "cuda".
        max_length: to which the pairs were cut.
        batch: pairs an optimizer step.
        together: pairs that a peer sends through at once; 0 for the whole step.
        score_together: the same where TRL scores; 0 for as many as in training.
        budget, score_budget: tokens of a micro-batch on our side; 0 for the product's default.
        layout, compile: the product's settings of that name.
        checkpointing: gradients are checkpointed, on every side.
        cap_gib: memory of the GPU that a process may use; 0 for all.
        threads: of the CPU; 0 leaves torch's choice.
    """

    folder: str
    dtype: str = "float32"
    device: str = "cpu"
    max_length: int = 256
    batch: int = 4
    together: int = 0
    score_together: int = 0
    budget: int = 0
    score_budget: int = 0
    layout: str = "auto"
    compile: bool = False
    checkpointing: bool = False
    cap_gib: float = 0.0
    threads: int = 0


class Side(Protocol):
    """One implementation of the work. Both methods prepare untimed and return what is to be timed."""

    def __init__(self, job: Job) -> None: ...

    def training(self, steps: list[list[int]]) -> Callable[[], list[float]]:
        """Training from the start adapter over these rows step by step; returns the loss of every step."""
        ...

    def scoring(self, rows: int) -> Callable[[], list[float]]:
        """The reference scores of the first rows; returns the sums, chosen side first, pair after pair."""
        ...


def serve(side: type[Side], extra: dict[str, Callable[[Any, dict[str, Any]], Any]] | None = None) -> None:
    """Answers commands until stdin ends.

    Commands: `load` (the fields of a Job), `train` and `memory` (steps), `score` (rows), and those of `extra`, which
    are called with the loaded side and the command.
    """
    answers, made = _own_stdout(), None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "load":
                made, found = _load(side, Job(**command["job"]))
            elif extra and command["do"] in extra:
                found = {"result": extra[command["do"]](made, command)}
            else:
                assert made is not None, "load first"
                found = _measure(made, command)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
        print(json.dumps(found), file=answers, flush=True)


def _own_stdout() -> Any:
    """A stream to the driver; whatever libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _load(side: type[Side], job: Job) -> tuple[Side, dict[str, Any]]:
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    if job.cap_gib:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.cap_gib * 2**30 / whole))
    made = side(job)
    way = str(getattr(made, "way", ""))  # how our side lays its rows out
    return made, {"threads": torch.get_num_threads(), "machine": machine(job.device), "way": way}


def machine(device: str) -> str:
    """The machine in words."""
    import torch

    place = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} {platform.machine()} cores, no GPU"
    return f"{place}, Python {platform.python_version()}, torch {torch.__version__}"


def _measure(side: Side, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "score":
        seconds, result = timed(side.scoring(command["rows"]))
    elif command["do"] == "train":
        seconds, result = timed(side.training(command["steps"]))
    elif command["do"] == "memory":
        return gauged(side.training(command["steps"]))
    else:
        raise ValueError(f"unknown command {command['do']}")
    return {"seconds": seconds, "result": result}


def timed(work: Work) -> tuple[float, Any]:
    """Seconds of the work, the GPU's share included, and its result."""
    gc.collect()
    _synchronize()
    began = time.perf_counter()
    result = work()
    _synchronize()
    return time.perf_counter() - began, result


def gauged(work: Work) -> dict[str, Any]:
    """Seconds of the work and its peak memory: above what stood before it, and in all, of the GPU or of the process.

    Raises:
        OSError: there is no GPU, and the system does not let a process reset its own peak.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds, _ = timed(work)
        peak = torch.cuda.max_memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed must not stand as loaded
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = _status_bytes("VmRSS")
        seconds, _ = timed(work)
        peak = _status_bytes("VmHWM")
    return {"seconds": seconds, "peak_bytes": peak - before, "total_bytes": peak}


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    assert found, name
    return int(found[1]) * 1_024


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
