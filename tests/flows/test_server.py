import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import _processes, _server
from flows._processes import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.prefect` of the test's own, and no address of a server in the environment before or after."""
    home = tmp_path / ".prefect"
    home.mkdir()
    monkeypatch.setattr(_processes, "HOME", home)
    monkeypatch.setattr(_server, "HOME", home)
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
    assert _server._choose_server(0) == 4321
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(_server.ServerError, match="runs on port 4321"):
        _server._choose_server(4400)


class Clone:
    """A copy of the project with a Prefect of its own."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        for name in ("engine", "flows", "tasks", "configs"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("prefect.toml", "prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        own = {"PYTHONPATH": str(root), "HOME": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = kept | own

    def server(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run("-m", "flows._server", *arguments)

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run("-m", "prefect", *arguments, PREFECT_API_URL=f"http://127.0.0.1:{self.port}/api")

    def _run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def nightly_is_on(self) -> bool:
        shown = self.prefect("deployment", "inspect", "dpo-pipeline/nightly", "--output", "json")
        (schedule,) = json.loads(shown.stdout)["schedules"]
        return bool(schedule["active"])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clone = Clone(tmp_path_factory.mktemp("clone"), port)
    deployed = clone.server("deploy", "--port", str(port))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    yield clone
    stopped = clone.server("stop")
    assert "server: stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"


@pytest.mark.slow
def test_a_deployment_runs_on_the_worker_and_reuses_what_is_there(clone: Clone) -> None:
    run = ("deployment", "run", "dpo-pipeline/default", "--param", "until=subsample", "--watch")
    first = clone.prefect(*run)
    assert first.returncode == 0, first.stdout
    second = clone.prefect(*run)
    assert second.returncode == 0, second.stdout
    assert second.stdout.count("prefect.task-run.Reused") == 3, second.stdout


@pytest.mark.slow
def test_an_impossible_parameter_is_refused_before_a_run_exists(clone: Clone) -> None:
    refused = clone.prefect("deployment", "run", "dpo-pipeline/default", "--param", "beta=-1", "--watch")
    assert refused.returncode == 1
    assert "beta" in refused.stdout + refused.stderr


@pytest.mark.slow
def test_the_schedule_is_off_until_switched_on_and_deploying_again_keeps_it(clone: Clone) -> None:
    assert not clone.nightly_is_on()
    assert clone.server("nightly-on").returncode == 0
    assert clone.nightly_is_on()
    assert clone.prefect("--no-prompt", "deploy", "--all").returncode == 0
    assert clone.nightly_is_on()
    assert clone.server("nightly-off").returncode == 0
    assert clone.prefect("--no-prompt", "deploy", "--all").returncode == 0
    assert not clone.nightly_is_on()


@pytest.mark.slow
def test_cancelling_a_run_stops_its_processes_and_says_so_in_its_record(clone: Clone) -> None:
    started = clone.prefect("deployment", "run", "dpo-pipeline/default", "--param", "force=true")
    run_id = next(word for word in started.stdout.split() if word.count("-") == 4 and len(word) == 36)
    engine = _wait_for(lambda: _engines(clone))
    record = _wait_for(lambda: _latest_record(clone, "running"))
    assert clone.prefect("flow-run", "cancel", run_id).returncode == 0
    assert _wait_for(lambda: not any(process.is_running() for process in engine))
    assert json.loads(record.read_text())["state"] == "cancelled"


def _engines(clone: Clone) -> list[psutil.Process]:
    worker = psutil.Process(json.loads((clone.root / ".prefect" / "worker.json").read_text())["pid"])
    return [each for each in worker.children(recursive=True) if "prefect.engine" in " ".join(each.cmdline())]


def _latest_record(clone: Clone, state: str) -> Path | None:
    records = (clone.root / "artifacts" / "runs").glob("*/run.json")
    return next((path for path in records if json.loads(path.read_text())["state"] == state), None)


def _wait_for(found: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")
