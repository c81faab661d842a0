import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proof.lane import Lane, LaneError
from proof.orders import OVER_TIME, Order


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Lane:
    """Without a nursery: every attempt goes on until it is ended from here."""
    answers = iter([None, -signal.SIGKILL])
    monkeypatch.setattr(Lane, "_ask", lambda self, asked: {"code": next(answers)})
    return Lane.__new__(Lane)


def test_an_attempt_that_goes_on_too_long_is_ended_and_says_so_and_was_not_struck(lane: Lane, tmp_path: Path) -> None:
    order = Order(str(tmp_path), ["run"], str(tmp_path / "log"))
    for name in ("out", "err"):
        (tmp_path / f"log.{name}").write_text("said", "utf-8")
    attempt = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = lane.wait(attempt.pid, order, seconds=1)
    assert ended.code == OVER_TIME
    assert ended.told.endswith("dpo run went on for more than 1 s")
    assert attempt.wait() == -signal.SIGKILL


def test_a_nursery_that_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def popen(words: list[str], **named: Any) -> Any:
        keep = {name: value for name, value in named.items() if name != "cwd"}
        made.append(subprocess_popen([sys.executable, "-c", "raise SystemExit(3)"], **keep))
        return made[-1]

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    with Lane(Path("hub")) as lane, pytest.raises(LaneError, match=r"the nursery ended \(3\)"):
        lane.start(Order("", [], ""))
