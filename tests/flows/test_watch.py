import io
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Running
from rich.console import Console

from engine.runs import REPORT, RunRecord
from engine.stage import Decision
from flows import _watch
from flows._progress import bars
from flows._watch import Watch, cancel, run_deployment

SECRET = "s3cr3t-value-of-mine"
ACTING = f"401 for {SECRET} \x1b]0;owned\x07\u202e [red]row[/red]"
TROUBLE = [
    httpx.ConnectError("refused"),
    httpx.HTTPStatusError("503", request=httpx.Request("GET", "http://x"), response=httpx.Response(503)),
    ObjectNotFound(RuntimeError("404")),
]


class Server:
    """Stands in for the client: answers with one state after the other, the last for ever; an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.set: list[Any] = []
        self.logs: list[Any] = []
        self.stages: list[Any] = []

    def read_flow_run(self, id: Any) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return SimpleNamespace(id=id, state=answer)

    def set_flow_run_state(self, id: Any, state: Any) -> None:
        if isinstance(self.answers[0], Exception):
            raise self.answers[0]
        self.set.append(state)

    def read_deployment_by_name(self, name: str) -> Any:
        return SimpleNamespace(id=uuid4())

    def create_flow_run_from_deployment(self, id: Any) -> Any:
        return SimpleNamespace(id=uuid4())

    def read_task_runs(self, **_: Any) -> list[Any]:
        return self.stages

    def read_artifacts(self, **_: Any) -> list[Any]:
        return []

    def read_logs(self, wanted: Any, offset: int, sort: Any) -> list[Any]:
        return self.logs[offset:]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(_watch, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def told_by_cancelling(server: Server) -> str:
    console = Console(file=io.StringIO(), width=200)
    cancel(server, uuid4(), console)  # type: ignore[arg-type]
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def follow(monkeypatch: pytest.MonkeyPatch, server: Server) -> int:
    monkeypatch.setattr(_watch, "get_client", lambda sync_client: nullcontext(server))
    return run_deployment("dpo-pipeline/default")


def test_a_cancelled_run_that_ends_is_said_to_have_stopped(clock: SimpleNamespace) -> None:
    server = Server(Running(), Running(), Cancelled())
    assert "Stopped." in told_by_cancelling(server)
    assert server.set[0].is_cancelling()


def test_one_that_does_not_end_in_time_is_said_to_be_stopping_still(clock: SimpleNamespace) -> None:
    told = told_by_cancelling(Server(Running()))
    assert "still stopping" in told and "Stopped." not in told
    assert clock.now >= _watch.CANCEL_SECONDS


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda each: type(each).__name__)
def test_a_server_in_trouble_at_ctrl_c_is_a_sentence(trouble: Exception, clock: SimpleNamespace) -> None:
    for server in (Server(trouble), Server(Running(), trouble)):
        told = told_by_cancelling(server)
        assert "`make stop` ends it" in told and "Stopped." not in told


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda each: type(each).__name__)
def test_a_server_in_trouble_while_following_is_a_sentence(
    trouble: Exception, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(monkeypatch, Server(Running(), trouble)) == 1
    assert "what is finished is reused" in " ".join(capsys.readouterr().out.split())


def test_a_server_that_takes_no_run_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(Running())
    monkeypatch.setattr(server, "read_deployment_by_name", lambda name: (_ for _ in ()).throw(TROUBLE[0]))
    assert follow(monkeypatch, server) == 1
    assert "no run is known to have started" in capsys.readouterr().out


def test_ctrl_c_while_following_cancels_the_run(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(KeyboardInterrupt(), Cancelled())
    with pytest.raises(KeyboardInterrupt):
        follow(monkeypatch, server)
    assert len(server.set) == 1
    assert "Stopped." in capsys.readouterr().out


def test_nothing_that_a_run_says_acts_on_the_terminal_or_tells_a_secret(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    server = Server(Running(), Failed(message=ACTING))
    server.logs = [SimpleNamespace(message=ACTING)]
    server.stages = [
        SimpleNamespace(
            id=uuid4(), name=f"train {ACTING}", state=Failed(message=ACTING), start_time=None,
            total_run_time=timedelta(seconds=1),
        )
    ]  # fmt: skip
    assert follow(monkeypatch, server) == 1
    told = capsys.readouterr().out
    assert told.count("owned") == 4, told
    assert "[red]row[/red]" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)
    assert SECRET not in told


def test_a_completed_run_without_its_report_here_is_well(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(monkeypatch, Server(Completed(message="/elsewhere/report.md"))) == 0
    assert "browse" in capsys.readouterr().out


def test_a_run_whose_model_the_gate_kept_out_is_well_and_shows_its_table_and_its_report(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = tmp_path / "artifacts" / "evaluate" / "k"
    record = RunRecord("20260102-030405-mine", tmp_path / "run", "mine", [], {}, {}, {}, {}, "", 0.0)
    record.folder.mkdir()
    record.add(Decision("evaluate", "run", "never made", "k", made, 61.0), None)
    record.finish("completed")
    report = record.folder / REPORT
    ending = Completed(name="Kept", message=f"Verdict of the gate: not passed.\n- a rule: broken\n{report}")
    assert follow(monkeypatch, Server(Running(), ending)) == 0
    told = capsys.readouterr().out
    assert "run 20260102-030405-mine" in told and "1 min 01 s" in told
    shown = report.with_suffix(".html")
    assert f"report: {shown if shown.is_file() else report}" in told


def test_progress_is_shown_as_the_stage_tells_it_and_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "step 20 of 100 · loss 0.6123\x1b[2J · margin 1.5 · 76,799 tokens/s · 40 s left"
    stage = SimpleNamespace(id=uuid4(), name="train", state=Running(), start_time=None)
    server = Server(Running())
    server.stages = [stage]
    shown = [SimpleNamespace(task_run_id=stage.id, data=20.0, description=text)]
    monkeypatch.setattr(server, "read_artifacts", lambda **_: shown)
    for width, expected in ((80, "loss 0.6123·[2J · margin"), (140, "step 20 of 100 · loss")):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        live = bars(console)
        Watch(server, uuid4(), live)._show_stages()  # type: ignore[arg-type]
        console.print(live.get_renderable())
        [line] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert expected in line and "20%" in line and "40 s left" in line
