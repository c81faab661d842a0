import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from flows import _processes, _server, _units
from flows._processes import Service
from flows._server import ServerError
from flows._units import UnitError, settings_file, units, write

ROOT = Path(__file__).parents[2]
ODD = 'my 50% clone $HOME "q" it\'s \\n 指令'


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone in a folder with an odd name, and a home of the test's own."""
    root = tmp_path / ODD
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".prefect").mkdir()
    monkeypatch.setattr(_units, "ROOT", root)
    for module in (_units, _processes, _server):
        monkeypatch.setattr(module, "HOME", root / ".prefect")
    monkeypatch.setattr(sys, "executable", str(root / ".venv" / "bin" / "python"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "kept so that it is restored")
        monkeypatch.delenv(name)
    return root


def parsed(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    return unit


def words(command: str) -> list[str]:
    """The words of an ExecStart as systemd reads them: quotes, escapes in them, and %% for %."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', command.removeprefix(":"))
    return [re.sub(r"\\(.)", r"\1", quoted or bare).replace("%%", "%") for quoted, bare in found]


def test_the_units_run_this_clone_whatever_its_folder_is_called(odd: Path) -> None:
    made = {name: parsed(text) for name, text in units("dpo", 4300).items()}
    server, worker = made["dpo-server.service"]["Service"], made["dpo-worker.service"]["Service"]
    for service in (server, worker, made["dpo-reports.service"]["Service"]):
        assert service["WorkingDirectory"].replace("%%", "%") == str(odd)
        assert service["ExecStart"].startswith(":/"), "a $ in a path would be a variable"
    run = [str(odd / ".venv" / "bin" / "python"), "-m", "flows._units"]
    assert words(server["ExecStart"])[1:] == [*run, "run-server", "--port", "4300"]
    assert words(worker["ExecStart"])[1:] == [*run, "run-worker", "--port", "4300"]
    assert words(worker["ExecStop"])[1:] == [*run, "stop-worker"]
    assert words(made["dpo-reports.service"]["Service"]["ExecStart"])[1:] == [*run, "run-reports", "--port", "4300"]


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1))
def test_any_word_of_a_command_comes_back_as_it_was(word: str) -> None:
    if not word.endswith("\\"):
        assert words(_units._quoted(word)) == [word]


def test_the_worker_comes_after_the_server_and_has_time_to_stop_its_runs_before_it(odd: Path) -> None:
    worker = parsed(units("dpo", 4200)["dpo-worker.service"])
    assert worker["Unit"]["After"] == worker["Unit"]["Wants"] == "dpo-server.service"
    from flows._watch import CANCEL_SECONDS

    assert int(worker["Service"]["TimeoutStopSec"]) > CANCEL_SECONDS + 3 * _processes.STOP_SECONDS - 10
    assert (worker["Service"]["KillMode"], worker["Service"]["Restart"]) == ("mixed", "on-failure")
    assert worker["Service"]["OOMPolicy"] == "continue", (
        "a run that is killed for its memory would take the worker along"
    )


def test_where_the_server_is_the_users_own_there_is_no_unit_for_one(odd: Path) -> None:
    made = units("dpo", 4200, server="http://10.0.0.1:4200/api?x=50%")
    assert set(made) == {"dpo-worker.service", "dpo-reports.service"}
    worker = made["dpo-worker.service"]
    assert 'Environment="PREFECT_API_URL=http://10.0.0.1:4200/api?x=50%%"' in worker
    assert "dpo-server" not in worker and "--port" not in worker


def test_a_password_is_not_written_into_a_unit(odd: Path) -> None:
    with pytest.raises(UnitError, match="holds a secret") as caught:
        units("dpo", 4200, server="http://me:hunter2@10.0.0.1/api")
    assert "hunter2" not in str(caught.value) and str(settings_file()) in str(caught.value)


@pytest.mark.parametrize("name", ["a\nExecStart=x", "a\\", " a", "a\x07", "a\u2028b"])
def test_a_folder_that_no_unit_can_name_is_refused(odd: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_units, "ROOT", odd.with_name(name))
    with pytest.raises(UnitError, match="cannot name"):
        units("dpo", 4200)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["_units", *arguments])
    return _units.main()


def test_writing_them_says_what_to_type_and_does_nothing_else(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert call(monkeypatch, "write") == 0
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "systemd" / "user"
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict(units("dpo", 4200))
    told = capsys.readouterr().out
    enabled = "enable --now dpo-server.service dpo-worker.service dpo-reports.service"
    for command in ("daemon-reload", enabled, "loginctl enable-linger"):
        assert command in told
    assert call(monkeypatch, "write", "--port", "4300") == 0, "its own units are brought up to date"
    assert "4300" in (folder / "dpo-server.service").read_text()


def test_printing_them_writes_nothing(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "print", "--name", "other") == 0
    told = capsys.readouterr().out
    assert all(text in told for text in units("other", 4200).values()) and "other-worker.service\n" in told
    assert not Path(os.environ["XDG_CONFIG_HOME"]).exists()


def test_units_of_another_clone_are_left_alone(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(units("dpo", 4200))
    before = [path.read_text() for path in paths]
    monkeypatch.setattr(_units, "ROOT", odd.with_name("another"))
    with pytest.raises(UnitError, match=r"not of this clone(.|\n)*NAME="):
        write(units("dpo", 4300))
    assert [path.read_text() for path in paths] == before
    assert len(write(units("dpo2", 4300))) == 3


@pytest.mark.parametrize("name", ["", "a b/../c", "../a", ".a", "-a", "a@b", "a%b", "a\n", "é", "x" * 101])
def test_a_name_that_no_unit_may_have_is_refused_with_what_one_may_be(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for action in ("write", "print"):
        assert call(monkeypatch, action, f"--name={name}") == 1
        told = capsys.readouterr()
        assert not told.out and "expected: up to 100 of A-Z" in told.err and repr(name) in told.err
    assert not Path(os.environ["XDG_CONFIG_HOME"]).exists()


@pytest.mark.parametrize(("port", "exists"), [(-1, False), (0, False), (1, True), (65_535, True), (99_999, False)])
def test_a_port_that_does_not_exist_is_refused(odd: Path, port: int, exists: bool) -> None:
    with nullcontext() if exists else pytest.raises(ConfigError, match="expected: 1 to 65535"):
        assert f'"--port" "{port}"' in units("dpo-2.b_c", port)["dpo-2.b_c-server.service"]


def test_a_place_that_cannot_be_written_is_an_error_in_words(odd: Path) -> None:
    Path(os.environ["XDG_CONFIG_HOME"]).write_text("a file")
    with pytest.raises(UnitError, match="cannot be written"):
        write(units("dpo", 4200))


def test_what_systemd_starts_is_known_like_what_is_started_here(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append(arguments))
    _units.run_server(4321)
    assert became == [[sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4321"]]
    assert Service("server").state() == {
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "port": 4321,
    }
    with pytest.raises(ServerError, match="running already"):
        _units.run_server(4321)


def test_the_reports_are_served_on_the_first_free_port_behind_the_servers(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append(arguments))
    monkeypatch.setattr(_server, "_taken", lambda port: port == 4322)
    _units.run_reports(4321)
    assert became == [[sys.executable, "-m", "flows._reports", "--port", "4323"]]
    assert Service("reports").state()["port"] == 4323
    with pytest.raises(ServerError, match="served already"):
        _units.run_reports(4321)


def test_the_worker_waits_for_the_server_and_makes_its_pool(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    answers = iter([False, False, True])

    async def make_pool() -> None:
        steps.append("pool")

    monkeypatch.setattr(_server, "answers", lambda: next(answers))
    monkeypatch.setattr(_server, "close_unheard", lambda: steps.append("unheard"))
    monkeypatch.setattr(_server, "make_pool", make_pool)
    monkeypatch.setattr(os, "execv", lambda path, arguments: steps.append(arguments[3]))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    _units.run_worker(4321)
    assert steps == ["unheard", "pool", "worker"]
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


def test_a_server_that_never_answers_is_an_error_that_systemd_sees(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_server, "answers", lambda: False)
    monkeypatch.setattr(_units, "START_SECONDS", -1.0)
    assert call(monkeypatch, "run-worker") == 1
    assert "no Prefect server answers" in capsys.readouterr().err


def test_stopping_the_worker_cancels_its_runs_first(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(Service, "runs", lambda self: {self.name})
    monkeypatch.setattr(Service, "stop", lambda self: steps.append(f"stop {self.name}"))
    monkeypatch.setattr(_server, "answers", lambda: True)
    monkeypatch.setattr(_server, "cancel", lambda runs: steps.append(f"cancel {runs}"))
    assert call(monkeypatch, "stop-worker") == 0
    assert steps == ["cancel {'worker'}", "stop worker"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_finds_nothing_wrong_with_them(odd: Path, tmp_path: Path) -> None:
    made = tmp_path / "units"
    made.mkdir()
    for name, text in units("dpo", 4200).items():
        (made / name).write_text(text)
    (tmp_path / "runtime").mkdir()
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "runtime")}

    def verified() -> str:
        command = ["systemd-analyze", "verify", "--user", *(str(path) for path in sorted(made.iterdir()))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "Failed to initialize" not in verified()
    assert verified() == ""
    worker = made / "dpo-worker.service"
    worker.write_text(worker.read_text().replace("KillMode=mixed", "KillMode=mixed up"))
    assert "KillMode" in verified() or "kill mode" in verified(), "it looks at nothing"


@pytest.mark.slow
def test_a_server_and_a_worker_that_run_as_units_are_deployed_to_used_and_stopped(clone: Any) -> None:
    assert clone.server("stop").returncode == 0
    port = ("--port", str(clone.port))
    environment = clone.environment | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

    def unit(action: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "flows._units", action, *port]
        process = subprocess.Popen(command, cwd=clone.root, env=environment, stderr=subprocess.DEVNULL)
        threading.Thread(target=process.wait, daemon=True).start()  # as systemd does: no zombie is waited for
        return process

    with unit("run-worker") as worker, unit("run-server") as server:  # in any order
        try:
            clone.wait_for(lambda: (clone.root / ".prefect" / "worker.json").exists())
            deployed = clone.server("deploy", *port)
            assert deployed.returncode == 0, deployed.stderr
            assert "starting" not in deployed.stdout
            assert (clone.service("server").pid, clone.service("worker").pid) == (server.pid, worker.pid)
            run = clone.start("default")
            clone.wait_for(clone.checkpoints)
            stopped = subprocess.run(
                [sys.executable, "-m", "flows._units", "stop-worker"], cwd=clone.root, env=environment, timeout=120
            )
            assert stopped.returncode == 0
            assert worker.wait(10) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), "systemd would start it again"
            assert clone.record()["state"] == "cancelled" and clone.checkpoints()
            assert clone.ends_as(run)[0] in ("Cancelled", "Crashed")  # its worker may be gone before it says which
            assert server.poll() is None
            assert "server: stopped" in clone.server("stop").stdout
            assert server.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        finally:
            worker.kill()
            server.kill()
    assert clone.server("up", *port).returncode == 0  # as the other tests here find it


@pytest.mark.slow
def test_the_line_for_cron_runs_in_the_bare_environment_that_cron_gives(tmp_path: Path) -> None:
    settings = "--set download.embedded_pairs=20 --until download"
    roots = f"--set runtime.artifacts={tmp_path}/artifacts --set runtime.data={tmp_path}/data"
    python = f"'{sys.executable}' -c 'import sys; from flows.cli import main; sys.exit(main())'"
    line = f"cd '{ROOT}' && {python} run {settings} {roots} >> '{tmp_path}/nightly.log' 2>&1"
    bare = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "me"}

    def run(command: str) -> int:
        return subprocess.run(["/bin/sh", "-c", command], env=bare, cwd=tmp_path).returncode

    assert run(line) == 0, (tmp_path / "nightly.log").read_text()
    assert run(line.replace("embedded_pairs=20", "embedded_pairs=none")) == 1
    log = (tmp_path / "nightly.log").read_text()
    assert "report:" in log and "error:" in log
