import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect.exceptions import ObjectNotFound

from flows import _processes, _reports, _server, _watch
from flows._processes import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.prefect` of the test's own, and no address of a server in the environment before or after."""
    home = tmp_path / ".prefect"
    home.mkdir()
    monkeypatch.setattr(_processes, "HOME", home)
    for module in (_server, _reports):
        monkeypatch.setattr(module, "HOME", home)
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "kept so that it is restored")
        monkeypatch.delenv(name)
    return home


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, both of which would sleep for a minute."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()


def remember(home: Path, name: str, **state: Any) -> Service:
    (home / f"{name}.json").write_text(json.dumps(state))
    return Service(name)


def test_a_process_is_known_by_its_id_and_start_time(home: Path) -> None:
    created = psutil.Process().create_time()
    assert remember(home, "server", pid=os.getpid(), created=created, port=4300).state()["port"] == 4300


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"pid": 0}', '{"pid": 4194304000, "created": 1.0}'])
def test_a_file_that_names_no_process_means_that_none_runs(home: Path, text: str) -> None:
    (home / "server.json").write_text(text)
    assert Service("server").state() == {}
    assert Service("server").stop() is False


def test_a_process_that_only_inherited_the_id_is_not_ended(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    assert remember(home, "worker", pid=sleeper.pid, created=1.0).stop() is False
    assert sleeper.poll() is None


def test_stopping_ends_the_children_too(home: Path, sleeper: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(sleeper.pid)
    (child,) = process.children()
    service = remember(home, "worker", pid=process.pid, created=process.create_time())
    assert service.stop() is True
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert service.state() == {}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["_server", *arguments])
    return _server.main()


def test_a_taken_port_is_said_with_the_way_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call(monkeypatch, "up", "--port", str(port)) == 1
    message = capsys.readouterr().err
    assert f"port {port} is taken" in message
    assert f"make demo PORT={port + 100}" in message


def test_a_server_that_the_user_chose_and_does_not_answer_is_not_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert call(monkeypatch, "up") == 1
    assert "no Prefect server answers at http://127.0.0.1:9/api" in capsys.readouterr().err
    assert not (home / "server.json").exists()


def test_a_running_server_keeps_its_port(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(home, "server", pid=os.getpid(), created=psutil.Process().create_time(), port=4321)
    assert _server.choose_server(0) == 4321
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(_server.ServerError, match="runs on port 4321"):
        _server.choose_server(4400)


def test_a_server_that_is_started_here_listens_on_this_machine_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starts(monkeypatch)
    assert call(monkeypatch, "up", "--port", "4329") == 0
    server = started["server"]
    assert server[server.index("--host") + 1] == "127.0.0.1"
    assert os.environ["PREFECT_API_URL"].startswith("http://127.0.0.1:")


def starts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What is started from now on, by name, in place of starting it; every server answers."""
    started: dict[str, list[str]] = {}
    monkeypatch.setattr(Service, "start", lambda self, arguments, **_: started.update({self.name: arguments}))
    monkeypatch.setattr(_server, "answers", lambda: True)
    monkeypatch.setattr(_server, "close_unheard", lambda: None)
    monkeypatch.setattr(_server, "_reports_listen", lambda: True)
    return started


def test_the_runs_reports_are_served_beside_the_server_on_the_next_port_that_is_free(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = starts(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(_server, "_taken", lambda asked: asked == port)
        assert call(monkeypatch, "up", "--port", str(port - 1)) == 0
    assert list(started) == ["server", "reports", "worker"]
    assert started["reports"] == ["--port", str(port + 1)]
    assert f"http://127.0.0.1:{port + 1}/" in capsys.readouterr().out


def test_the_reports_are_served_beside_the_worker_where_the_server_is_the_users_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starts(monkeypatch)
    monkeypatch.setattr(_server, "_taken", lambda port: False)
    monkeypatch.setenv("PREFECT_API_URL", "http://10.0.0.1:4200/api")
    assert call(monkeypatch, "up") == 0
    assert started == {"reports": ["--port", "4201"], "worker": started["worker"]}


def test_reports_that_no_port_is_left_for_keep_nothing_from_starting(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = starts(monkeypatch)
    monkeypatch.setattr(_server, "_taken", lambda port: port != 4329)
    remember(home, "server", pid=os.getpid(), created=psutil.Process().create_time(), port=4329)
    assert call(monkeypatch, "up") == 0
    assert list(started) == ["worker"]
    assert "the runs' reports are not served" in capsys.readouterr().out


def test_reports_that_are_served_already_keep_their_port(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = starts(monkeypatch)
    remember(home, "reports", pid=os.getpid(), created=psutil.Process().create_time(), port=4333)
    assert call(monkeypatch, "up", "--port", "4329") == 0
    assert list(started) == ["server", "worker"]


def test_reports_whose_port_somebody_else_was_faster_to_take_are_served_on_the_next(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[int] = []

    def taken(port: int) -> bool:
        """Sees the other server from the second look on."""
        looks.append(port)
        return look(port) and len(looks) > 1

    look = _server._taken
    monkeypatch.setattr(_server, "_taken", taken)
    with _reports.Server(0) as others:
        theirs = others.server_address[1]
        try:
            _server._start_reports(theirs - 1)
            ours = _processes.REPORTS.state()["port"]
            assert httpx.get(f"http://127.0.0.1:{ours}/").status_code == 200, "it is said when it answers"
        finally:
            _processes.REPORTS.stop()
    assert ours > theirs == looks[0]
    assert capsys.readouterr().out == f"serving the runs' reports on http://127.0.0.1:{ours}/\n"


def test_reports_that_cannot_be_served_say_their_last_words_and_keep_nothing_from_starting(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service("reports", "this")  # a module that prints and ends
    monkeypatch.setattr(_server, "REPORTS", service)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    _server._start_reports(port - 1)
    told = capsys.readouterr().out
    assert "are not served" in told and "Namespaces are one honking great idea" in told
    assert "serving" not in told and service.log.read_text().count("Beautiful") == 1
    assert not (home / "reports.json").exists(), "no link leads there"


def test_reports_that_hang_are_not_waited_for_without_end(
    home: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    remember(home, "reports", pid=sleeper.pid, created=psutil.Process(sleeper.pid).create_time(), port=4333)
    monkeypatch.setattr(_server, "REPORTS_SECONDS", 0.2)
    assert not _server._reports_listen()


def test_a_service_is_started_by_its_own_module_and_known_from_then_on(home: Path) -> None:
    service = Service("reports", "this")  # a module that prints and ends
    service.start(["--port", "1"], port=1)
    state = json.loads((home / "reports.json").read_text())
    psutil.Process(state["pid"]).wait(30)
    assert state["port"] == 1
    assert "Beautiful is better" in service.log.read_text()


def test_the_runs_of_a_worker_are_those_whose_processes_it_started(home: Path) -> None:
    own, others = uuid4(), uuid4()
    code = "import os, subprocess, sys, time\n"
    code += f"subprocess.Popen(['sleep', '60'], env={{'PREFECT__FLOW_RUN_ID': '{own}'}})\n"
    code += "subprocess.Popen(['sleep', '60'], env={'PREFECT__FLOW_RUN_ID': 'no id'})\n"
    code += "subprocess.Popen(['sleep', '60'], env={})\nprint(flush=True); time.sleep(60)"
    elsewhere = subprocess.Popen(["sleep", "60"], env={"PREFECT__FLOW_RUN_ID": str(others)})
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        service = remember(home, "worker", pid=worker.pid, created=psutil.Process(worker.pid).create_time())
        assert service.runs() == {own}
        service.stop()
        assert service.runs() == set()
    finally:
        for process in (worker, elsewhere):
            process.kill()
            process.wait()


class Pool:
    """Stands in for the client of a server that several people use: what is cancelled, of all that is under way."""

    def __init__(self, runs: Sequence[UUID], trouble: Exception | None = None) -> None:
        self.runs, self.trouble = list(runs), trouble
        self.cancelled: list[UUID] = []

    async def read_flow_runs(self, flow_run_filter: Any) -> list[Any]:
        if self.trouble:
            raise self.trouble
        return [SimpleNamespace(id=id) for id in self.runs if id in flow_run_filter.id.any_]

    async def set_flow_run_state(self, id: UUID, state: Any) -> None:
        self.runs.remove(id)
        self.cancelled.append(id)


@pytest.fixture
def stop(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Pool, set[UUID]], str]:
    """`make stop` of a clone whose worker has the given runs, with a server of the user's own; what it prints."""

    def stop(pool: Pool, runs: set[UUID]) -> str:
        @asynccontextmanager
        async def client() -> AsyncIterator[Pool]:
            yield pool

        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        monkeypatch.setattr(_server, "answers", lambda: True)
        monkeypatch.setattr(_watch, "get_client", client)
        monkeypatch.setattr(Service, "runs", lambda self: runs)
        assert call(monkeypatch, "stop") == 0
        return capsys.readouterr().out

    return stop


def test_stopping_cancels_the_runs_of_this_clone_and_nobody_elses(stop: Callable[[Pool, set[UUID]], str]) -> None:
    ours, theirs = uuid4(), uuid4()
    pool = Pool([ours, theirs])
    stop(pool, {ours})
    assert (pool.cancelled, pool.runs) == ([ours], [theirs])
    stop(pool, set())
    assert pool.runs == [theirs]


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ReadTimeout("slow"),
        httpx.HTTPStatusError("500", request=httpx.Request("GET", "http://x"), response=httpx.Response(500)),
        ObjectNotFound(RuntimeError("404")),
        ConnectionResetError("reset"),
    ],
)
def test_a_server_in_trouble_keeps_nothing_from_being_stopped(
    stop: Callable[[Pool, set[UUID]], str], home: Path, trouble: Exception
) -> None:
    said = stop(Pool([], trouble), {uuid4()})
    assert f"could not be cancelled: {type(trouble).__name__}" in said
    assert all(f"{name}: was not running" in said for name in ("worker", "reports", "server"))


@pytest.mark.parametrize("chosen", ["5", "nan", "soon"])
def test_an_impossible_silence_is_said_before_anything_is_deployed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    monkeypatch.setenv("DPO_CRASHED_AFTER", chosen)
    monkeypatch.setattr(_server, "up", lambda port: None)
    monkeypatch.setattr(_server, "make_pool", lambda: pytest.fail("a pool was made"))
    assert call(monkeypatch, "deploy") == 1
    told = capsys.readouterr()
    assert "DPO_CRASHED_AFTER" in told.err and "deploying" not in told.out


@pytest.mark.slow
def test_nothing_but_this_machine_reaches_a_running_server(clone: Any) -> None:
    listening = {each.laddr.ip for each in clone.service("server").net_connections() if each.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


@pytest.mark.slow
def test_the_link_that_a_run_publishes_opens_its_report(clone: Any) -> None:
    run = clone.start("default", "until=subsample")
    assert clone.ends_as(run)[0] == "Completed"
    with httpx.Client(base_url=f"http://127.0.0.1:{clone.port}/api") as client:
        asked = {"artifacts": {"key": {"any_": ["dpo-report"]}}, "flow_runs": {"id": {"any_": [run]}}}
        ((artifact),) = client.post("/artifacts/filter", json=asked).json()
    link = str(artifact["data"]).partition("](")[2].rstrip(")")
    page = httpx.get(link)
    assert page.status_code == 200 and "subsample" in page.text
    listed = httpx.get(link.partition("/runs/")[0])
    assert link.partition("/runs/")[2] in listed.text


@pytest.mark.slow
def test_a_deployment_runs_on_the_worker_and_reuses_what_is_there(clone: Any) -> None:
    run = ("deployment", "run", "dpo-pipeline/default", "--param", "until=subsample", "--watch")
    first = clone.prefect(*run)
    assert first.returncode == 0, first.stdout
    second = clone.prefect(*run)
    assert second.returncode == 0, second.stdout
    assert second.stdout.count("prefect.task-run.Reused") == 3, second.stdout


@pytest.mark.slow
def test_an_impossible_parameter_is_refused_before_a_run_exists(clone: Any) -> None:
    refused = clone.prefect("deployment", "run", "dpo-pipeline/default", "--param", "beta=-1", "--watch")
    assert refused.returncode == 1
    assert "beta" in refused.stdout + refused.stderr


@pytest.mark.slow
def test_the_schedule_is_off_until_switched_on_and_deploying_again_keeps_it(clone: Any) -> None:
    assert not clone.nightly_is_on()
    assert clone.server("nightly-on").returncode == 0
    assert clone.nightly_is_on()
    assert clone.prefect("--no-prompt", "deploy", "--all").returncode == 0
    assert clone.nightly_is_on()
    assert clone.server("nightly-off").returncode == 0
    assert clone.prefect("--no-prompt", "deploy", "--all").returncode == 0
    assert not clone.nightly_is_on()
