from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from engine.stage import Decision
from flows import _board, _line
from flows._board import Board, over_text, progress_text
from flows._line import Line
from flows._progress import Work


class Record:
    """Stands in for a RunRecord."""

    def __init__(self) -> None:
        self.added: list[tuple[Decision, Any]] = []

    def add(self, decision: Decision, artifact: Any) -> None:
        self.added.append((decision, artifact))


class Shown:
    """Stands in for Prefect's artifacts: what was published, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, str]] = []
        self.pages: list[Decision] = []
        self.keys: list[str] = []
        self.down = False

    def create(self, progress: float, key: str, description: str) -> Any:
        self._note(key, progress, description)
        return uuid4()

    def update(self, artifact_id: Any, progress: float, description: str) -> None:
        self._note("update", progress, description)

    def _note(self, what: str, progress: float, description: str) -> None:
        self.calls.append((what, progress, description))
        if self.down:
            raise httpx.ConnectError("no server")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(_board, "create_progress_artifact", shown.create)
    monkeypatch.setattr(_board, "update_progress_artifact", shown.update)
    monkeypatch.setattr(_board, "publish_stage", lambda line, decision, artifact: shown.pages.append(decision))
    monkeypatch.setattr(_board, "tag_key", shown.keys.append)
    return shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    for module in (_board, _line):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: None))
    return clock


@pytest.fixture
def board(shown: Shown, clock: SimpleNamespace, line: Line) -> Board:
    return Board(Record(), line)  # type: ignore[arg-type]


def work(clock: SimpleNamespace, *reached: tuple[float, int], **numbers: float) -> Work:
    """Work on 450 units of which so many were done at so many seconds."""
    told = Work(lambda: clock.now)
    for now, done in reached:
        clock.now = now
        told.reached(done, 450, numbers)
    return told


def test_progress_says_what_it_counts_the_numbers_and_the_time_left(clock: SimpleNamespace) -> None:
    numbers = {"loss": 0.61234, "margin": 0.31, "tokens/s": 12345}
    told = progress_text(work(clock, (0.0, 90), (30.0, 120), **numbers), "step")
    assert told == "step 120 of 450 · loss 0.6123 · margin 0.31 · 12,345 tokens/s · 5 min 30 s left"
    assert progress_text(work(clock, (0.0, 450))) == "450 of 450"


def test_a_stage_that_stopped_early_says_where_and_how_long_it_took(clock: SimpleNamespace) -> None:
    stopped = work(clock, (0.0, 90), (30.0, 120), loss=1.0)
    assert over_text(stopped, 75.0, "step") == "step 120 of 450 · loss 1 · done in 1 min 15 s"
    assert over_text(work(clock, (0.0, 450)), None) == "450 of 450 · done"


def test_progress_is_shown_every_two_seconds_and_when_the_stage_is_over(
    shown: Shown, clock: SimpleNamespace, board: Board
) -> None:
    for done in range(1, 9):
        board.progressed("train", done, 8, {})
        clock.now += 0.9
    board.finished(Decision("train", "run", "never made", "0123456789abcdef", None, 7.2), None)
    assert [(what, progress) for what, progress, _ in shown.calls] == [
        ("dpo-train-progress", 50.0),
        ("update", 87.5),
        ("update", 100.0),
    ]
    assert shown.calls[1][2] == "step 7 of 8 · 1 s left"
    assert shown.calls[2][2] == "step 8 of 8 · done in 7.2 s"


def test_a_slow_beginning_does_not_make_the_time_left_long_for_long(
    shown: Shown, clock: SimpleNamespace, board: Board
) -> None:
    board.progressed("train", 0, 1000, {})
    clock.now += 120  # the trial of the layouts, and the first step
    for done in range(1, 101):
        board.progressed("train", done, 1000, {})
        clock.now += 1
    assert shown.calls[-1][2].endswith("· 15 min 01 s left"), shown.calls[-1]


def test_another_attempt_at_a_stage_begins_again(shown: Shown, clock: SimpleNamespace, board: Board) -> None:
    for done in (10, 20, 30, 1, 2, 3):
        board.progressed("download", done, 100, {})
        clock.now += 3
    assert [(what, round(progress)) for what, progress, _ in shown.calls] == [
        ("dpo-download-progress", 20), ("update", 30), ("update", 2), ("update", 3),
    ]  # fmt: skip
    assert shown.calls[-1][2] == "row 3 of 100 · 4 min 51 s left"


def test_a_stage_that_is_over_at_once_shows_no_progress(shown: Shown, clock: SimpleNamespace, board: Board) -> None:
    for stage in ("tokenize", "subsample"):
        board.progressed(stage, 1, 2, {})
        clock.now += 1.5
        board.progressed(stage, 2, 2, {})
        board.finished(Decision(stage, "run", "never made"), None)
    assert shown.calls == []


def test_work_of_unknown_length_shows_no_percentage(shown: Shown, clock: SimpleNamespace, board: Board) -> None:
    for done in (500, 1000):
        board.progressed("download", done, 0, {})
        clock.now += 10
    assert shown.calls == []


def test_a_lost_server_slows_no_stage_down(
    shown: Shown, clock: SimpleNamespace, line: Line, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    shown.down = True
    for seconds in (0, 3, 20):
        clock.now += seconds
        board.progressed("train", 1 + seconds, 100, {})
    assert len(shown.calls) == 1, "it was tried again too soon"
    shown.down = False
    clock.now += 11
    board.progressed("train", 50, 100, {})
    assert [what for what, *_ in shown.calls] == ["dpo-train-progress"] * 2
    assert "the Prefect server does not answer (no server)" in caplog.text
    assert line.lost_during == "train"


def test_a_finished_stage_is_recorded_before_it_is_published(
    monkeypatch: pytest.MonkeyPatch, shown: Shown, line: Line
) -> None:
    record, order = Record(), []
    monkeypatch.setattr(_board, "publish_stage", lambda line, decision, artifact: order.append(len(record.added)))
    Board(record, line).finished(Decision("sft", "skip", "a policy is given"), None)  # type: ignore[arg-type]
    assert order == [1]


@pytest.mark.parametrize("action", ["run", "reuse"])
def test_a_run_is_tagged_with_its_trainings_key_once_whether_it_is_made_or_reused(
    shown: Shown, board: Board, action: Any
) -> None:
    for stage in ("sft", "train", "evaluate"):
        decision = Decision(stage, action, "never made", f"the key of {stage}")
        if action == "run":
            board.started(decision)
        board.finished(decision, None)
    assert shown.keys == ["the key of train"]
