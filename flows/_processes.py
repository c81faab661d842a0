"""Background processes of this clone: each is known by a file in `.prefect/`, so another command can end it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import psutil

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".prefect"
STOP_SECONDS = 15.0
_RUN = "PREFECT__FLOW_RUN_ID"  # in the environment of the process that a worker starts for a run


@dataclass(frozen=True)
class Service:
    """A background process of this clone, known by a file with its process id and start time.

    Attributes:
        module: what Python runs for it.
    """

    name: str
    module: str = "prefect"

    @property
    def log(self) -> Path:
        """The file its output goes to."""
        return HOME / f"{self.name}.log"

    @property
    def _file(self) -> Path:
        return HOME / f"{self.name}.json"

    def state(self) -> Mapping[str, Any]:
        """What was written when it was started; empty when it is not running (any more)."""
        try:
            state = dict(json.loads(self._file.read_text("utf-8")))
            same = psutil.Process(state["pid"]).create_time() == state["created"]
        except (OSError, ValueError, TypeError, KeyError, psutil.Error):
            return {}
        return state if same else {}

    def start(self, arguments: list[str], **facts: Any) -> None:
        """Starts it in a session of its own, with default signals, and remembers it."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(arguments),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_default_signals,
            )
        self.remember(process.pid, **facts)

    def become(self, arguments: list[str], **facts: Any) -> NoReturn:
        """Turns this process into it; neither its number nor its start time change with the program."""
        self.remember(os.getpid(), **facts)
        os.execv(sys.executable, self.command(arguments))

    def command(self, arguments: list[str]) -> list[str]:
        """The command line that it runs under."""
        return [sys.executable, "-m", self.module, *arguments]

    def remember(self, pid: int, **facts: Any) -> None:
        """Writes down that a process is it, with what else `state` shall tell."""
        facts |= {"pid": pid, "created": psutil.Process(pid).create_time()}
        self._file.write_text(json.dumps(facts), "utf-8")

    def stop(self) -> bool:
        """Ends it and its children; False when it was not running."""
        state = self.state()
        if state:
            _end(psutil.Process(state["pid"]))
        self._file.unlink(missing_ok=True)
        return bool(state)

    def runs(self) -> set[UUID]:
        """The Prefect runs whose processes it started and that are alive; none when it is not running."""
        found = set()
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            for child in psutil.Process(self.state()["pid"]).children(recursive=True):
                with contextlib.suppress(psutil.Error, ValueError, KeyError):
                    found.add(UUID(child.environ()[_RUN]))
        return found

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-5:]) if self.log.exists() else ""


SERVER, WORKER, REPORTS = Service("server"), Service("worker"), Service("reports", "flows._reports")


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's background job is born ignoring some
        signal.signal(number, signal.SIG_DFL)


def _end(process: psutil.Process) -> None:
    """Lets the process end itself, then ends what is left of it and of its children."""
    family = process.children(recursive=True)
    process.terminate()
    _, stubborn = psutil.wait_procs([process], timeout=STOP_SECONDS)
    for signalled in (psutil.Process.terminate, psutil.Process.kill):
        _, alive = psutil.wait_procs([*stubborn, *family], timeout=0)
        for survivor in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                signalled(survivor)
        psutil.wait_procs(alive, timeout=STOP_SECONDS)
