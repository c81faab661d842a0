"""A nursery from outside: attempts are started in it one by one or several at once, and waited for."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proof.orders import OVER_TIME, Ended, Order
from proof.profile import environment

ROOT = Path(__file__).parent.parent
LONGEST_SECONDS = 300.0


class LaneError(Exception):
    """A nursery does not answer."""


class Lane:
    """One nursery, running. For one thread at a time.

    Args:
        hub: an empty folder that stands for the cache of the Hub.
        sabotage: a script run at the start of every attempt, to see the proof fail.
    """

    def __init__(self, hub: Path, sabotage: Path | None = None) -> None:
        words = [sys.executable, "-m", "proof.nursery", *([str(sabotage)] if sabotage else [])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(words, cwd=ROOT, env=environment(hub), text=True, **pipes)  # type: ignore[call-overload]
        self._loading = True  # the first answer says that it is over; other nurseries load meanwhile

    def start(self, order: Order) -> int:
        """Starts an attempt and returns its process id, which is its own until it has been waited for."""
        return int(self._ask({"do": "start", "order": asdict(order)})["pid"])

    def wait(self, pid: int, order: Order, seconds: float = LONGEST_SECONDS) -> Ended:
        """How an attempt ended; one that goes on for longer is killed. Raises LaneError."""
        code, late = self._ask({"do": "wait", "pid": pid, "seconds": seconds})["code"], ""
        if code is None:
            os.kill(pid, signal.SIGKILL)
            self._ask({"do": "wait", "pid": pid, "seconds": seconds})
            code, late = OVER_TIME, f"\ndpo {' '.join(order.words)} went on for more than {seconds:.0f} s"
        out, err = (Path(f"{order.log}.{name}").read_text("utf-8", "replace") for name in ("out", "err"))
        return Ended(code, out, err + late, order.lines("trace"))

    def is_running(self, pid: int) -> bool:
        """Whether an attempt that has not been waited for still works."""
        try:
            return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        if self._loading:
            self._answer()
            self._loading = False
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise LaneError(f"the nursery ended ({self._process.wait()})") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise LaneError(f"the nursery ended ({self._process.wait()})")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the nursery and every attempt in it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
