"""Long-lived worker processes that take turns: while one works, the others wait for a line on stdin."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.serving import Job

ROOT = Path(__file__).parent.parent
MODULES = {"ours": "benchmarks.ours", "trl": "benchmarks.peers.trl_side", "seed": "benchmarks.peers.seed_side"}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


class SideError(Exception):
    """A side cannot do what it was told; the message says where its log is."""


class Process:
    """One side, running.

    Args:
        name: a key of `MODULES`, or "ours" followed by anything.
        python: the interpreter of the side's environment.
        threads: that its matrix products may use; the same for all sides.
        logs: folder for what it prints.
    """

    def __init__(self, name: str, python: Path, threads: int, logs: Path) -> None:
        self.name, self.log = name, logs / f"{name}.log"
        logs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | QUIET | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", MODULES[name.partition(" ")[0]]],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer.

        Raises:
            SideError: the command failed, or the process ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps({"do": do, **fields}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the process ended ({self._process.wait()})"}
        if "error" in answer:
            raise SideError(f"{self.name} failed at {do}: {answer['error']}; its log is {self.log}")
        return dict(answer)

    def load(self, job: Job) -> dict[str, Any]:
        """Loads a job; the answer says with what versions and on what machine. Raises SideError."""
        return self.ask("load", job=asdict(job))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Answers = dict[str, list[dict[str, Any]]]


def alternate(
    sides: Mapping[str, Process],
    do: str,
    runs: int,
    *,
    between: Callable[[], object] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
    **fields: Any,
) -> Answers:
    """Every side does the same work in turn, `runs` times over; returns the answers of each in order.

    A peer that fails is left out of the result, and said to be; our own failure is raised.

    Args:
        between: called after every round.

    Raises:
        SideError: our own side failed.
    """
    answers: Answers = {name: [] for name in sides}
    for _ in range(runs):
        for name in list(answers):
            try:
                answers[name].append(sides[name].ask(do, **fields))
            except SideError as error:
                if name.startswith("ours"):
                    raise
                say(str(error))
                del answers[name]
        between()
    return answers


def trl_python(given: Path | None, folder: Path, say: Callable[[str], None]) -> Path | None:
    """An interpreter that has TRL 1.16.0: the given one, or that of an environment made in `folder` the first time.

    None, with a reason said, when there is none and it cannot be made.
    """
    python = given or folder / "bin" / "python"
    if not given and not python.is_file():
        say(f"making TRL's own environment in {folder}; this takes minutes")
        wanted = ("trl==1.16.0", "peft")
        pip: Sequence[str] = ("-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *wanted)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            subprocess.run([str(python), *pip], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            say(f"TRL is left out: its environment cannot be made ({' '.join(map(str, reason))})")
            return None
    check = [str(python), "-c", "import importlib.metadata as m; print(m.version('trl'))"]
    found = subprocess.run(check, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    if found != "1.16.0":
        say(f"TRL is left out: {python} has {'TRL ' + found if found else 'no TRL'}, 1.16.0 is measured against")
        return None
    return python
