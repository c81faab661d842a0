"""User units of systemd for the server, the worker and the server of reports of this clone.

`python -m flows._units write|print [--name N] [--port N]` is what `make service` calls. The units run the same with
`run-server`, `run-worker` and `run-reports`, which become those processes under the number they have; so `make deploy`
and `make stop` know them like those they start themselves. `stop-worker` is how the worker's unit ends.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from engine.errors import ConfigError, PipelineError
from engine.secrets import redact
from flows import _server
from flows._processes import HOME, REPORTS, ROOT, SERVER, WORKER
from flows._server import POOL, PORT, START_SECONDS, ServerError

_PARTS = ("run-server", "run-worker", "run-reports")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # systemd takes more, some of it with a meaning: @ makes a template
STOP_SECONDS = 120  # a cancelled run writes its checkpoint for up to 40 s, and then its worker has 45 s to end
_SERVER = """\
[Unit]
Description=Prefect server of {clone}

[Service]
WorkingDirectory={folder}
ExecStart={run_server}
Restart=on-failure
RestartSec=15
SuccessExitStatus=143
KillMode=mixed
TimeoutStopSec=60
EnvironmentFile=-{settings}

[Install]
WantedBy=default.target
"""
_WORKER = """\
[Unit]
Description=Prefect worker of {clone}
{ordering}
[Service]
WorkingDirectory={folder}
{environment}ExecStart={run_worker}
ExecStop={stop_worker}
Restart=on-failure
RestartSec=15
SuccessExitStatus=143
KillMode=mixed
TimeoutStopSec={stop_seconds}
OOMPolicy=continue
EnvironmentFile=-{settings}

[Install]
WantedBy=default.target
"""

_REPORTS = """\
[Unit]
Description=Reports of the runs of {clone}

[Service]
WorkingDirectory={folder}
ExecStart={run_reports}
Restart=on-failure
RestartSec=15
SuccessExitStatus=143
EnvironmentFile=-{settings}

[Install]
WantedBy=default.target
"""


class UnitError(PipelineError):
    """The units cannot be written for this clone, or are another clone's."""


def main() -> int:
    """The command line; 0 when all went well, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m flows._units", description="systemd units of this clone")
    parser.add_argument("action", choices=["write", "print", *_PARTS, "stop-worker"])
    parser.add_argument("--name", default="dpo", help="what the units' names begin with (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="the server's (default: %(default)s)")
    given = parser.parse_args()

    def texts() -> Mapping[str, str]:
        return units(given.name, given.port, server=os.environ.get("PREFECT_API_URL", ""))

    actions: dict[str, Callable[[], object]] = {
        "write": lambda: _say_written(write(texts())),
        "print": lambda: print("\n".join(f"# {folder() / name}\n{text}" for name, text in texts().items()), end=""),
        "run-server": lambda: run_server(given.port),
        "run-worker": lambda: run_worker(given.port),
        "run-reports": lambda: run_reports(given.port),
        "stop-worker": stop_worker,
    }
    HOME.mkdir(exist_ok=True)
    try:
        actions[given.action]()
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_server(port: int) -> NoReturn:
    """Becomes the server of this clone. Raises ServerError when one is running already."""
    if SERVER.state():
        raise ServerError("the server of this clone is running already", fix="make stop")
    _server.choose_server(port)
    SERVER.become(["server", "start", "--host", "127.0.0.1", "--port", str(port)], port=port)


def run_worker(port: int) -> NoReturn:
    """Becomes the worker of this clone, once the server answers and has a pool for it.

    Raises:
        ServerError: a worker is running already, or no server answers.
    """
    if WORKER.state():
        raise ServerError("the worker of this clone is running already", fix="make stop")
    server = _server.choose_server(0 if SERVER.state() else port)
    began = time.monotonic()
    while not _server.answers():
        if time.monotonic() - began > START_SECONDS:
            raise ServerError("no Prefect server answers", where=redact(os.environ["PREFECT_API_URL"]))
        time.sleep(0.5)
    if isinstance(server, int):
        _server.close_unheard()
    asyncio.run(_server.make_pool())
    WORKER.become(["worker", "start", "--pool", POOL, "--type", "process"])


def run_reports(port: int) -> NoReturn:
    """Becomes the server of reports of this clone, on the first free port behind that of the Prefect server.

    Raises:
        ServerError: it is running already, or no port is free.
    """
    if REPORTS.state():
        raise ServerError("the reports of this clone are served already", fix="make stop")
    chosen = _server.free_port(port + 1)
    if chosen is None:
        raise ServerError(f"no port from {port + 1} on is free")
    REPORTS.become(["--port", str(chosen)], port=chosen)


def stop_worker() -> None:
    """Cancels the runs of this clone's worker, which write their checkpoints, and ends it."""
    _server.choose_server(0)
    if (runs := WORKER.runs()) and _server.answers():
        _server.cancel(runs)
    WORKER.stop()


def units(name: str, port: int, *, server: str = "") -> Mapping[str, str]:
    """File name and text of the units of this clone.

    The worker starts after the server and stops before it. Stopping it first cancels its runs, which write their
    checkpoints. When the kernel kills a run for its memory, the worker stays and says so.

    Args:
        name: what the units' names begin with: `<name>-server.service`, `<name>-worker.service` and
            `<name>-reports.service`.
        port: the server's.
        server: the address of a server of the user's own: then there is no unit for one.

    Raises:
        ConfigError: that is no name of a unit, or no port.
        UnitError: a path of this clone holds what no unit file can, or the address a password, which it must not.
    """
    _check(name, port)
    if redact(server) != server:
        raise UnitError(
            "PREFECT_API_URL holds a secret, which is not written into a unit",
            fix=f"put the line PREFECT_API_URL=… into {settings_file()}, and take it out of the environment for this",
        )
    ordering = f"After={name}-server.service\nWants={name}-server.service\n"
    facts = {
        "clone": _specified(ROOT.name),
        "folder": _specified(str(ROOT)),
        "settings": _specified(str(settings_file())),
        "run_server": _command("run-server", "--port", str(port)),
        "run_worker": _command("run-worker", *([] if server else ["--port", str(port)])),
        "run_reports": _command("run-reports", "--port", str(port)),
        "stop_worker": _command("stop-worker"),
        "ordering": "" if server else ordering,
        "environment": f"Environment={_quoted(f'PREFECT_API_URL={server}')}\n" if server else "",
        "stop_seconds": STOP_SECONDS,
    }
    templates = {"server": _SERVER, "worker": _WORKER, "reports": _REPORTS}
    if server:
        del templates["server"]
    return {f"{name}-{part}.service": template.format(**facts) for part, template in templates.items()}


def _check(name: str, port: int) -> None:
    if not re.fullmatch(_NAME, name):
        allowed = "up to 100 of A-Z, a-z, 0-9 and . _ -, a letter or digit first"
        fix = "make service NAME=dpo-second"
        raise ConfigError("the units cannot have this name", expected=allowed, found=repr(name), fix=fix)
    if not 1 <= port <= 65_535:
        fix = f"make service PORT={PORT + 100}"
        raise ConfigError("there is no such port", expected="1 to 65535", found=str(port), fix=fix)


def folder() -> Path:
    """Where systemd looks for the user's own units."""
    return _configuration() / "systemd" / "user"


def settings_file() -> Path:
    """Where the units read further environment variables, such as HF_TOKEN; it need not exist."""
    return _configuration() / "dpo-pipeline.env"


def write(texts: Mapping[str, str]) -> list[Path]:
    """Writes the units and returns where; systemd is told nothing.

    Raises:
        UnitError: units of that name are of another clone, or cannot be written. Nothing was written then.
    """
    paths = {folder() / name: text for name, text in texts.items()}
    own = f"WorkingDirectory={_specified(str(ROOT))}"
    try:
        for path in paths:
            if path.exists() and own not in path.read_text("utf-8", "replace").splitlines():
                raise UnitError(
                    "there is a unit of that name already, and it is not of this clone",
                    where=str(path),
                    fix="make service NAME=another-name; or remove that unit first",
                )
        folder().mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            path.write_text(text, "utf-8")
    except OSError as error:
        raise UnitError("the units cannot be written", found=str(error), where=str(folder())) from None
    return list(paths)


def how_to_enable(names: list[str]) -> str:
    """The commands that put units into force, to be typed by hand."""
    first, every = names[0], " ".join(names)
    return (
        "nothing is started yet; to have them run from now on, and after every start of the machine:\n"
        f"  systemctl --user daemon-reload\n"
        f"  systemctl --user enable --now {every}\n"
        "  loginctl enable-linger     # else they end when you log out\n"
        f"their log: journalctl --user -u {first} -f; stop what `make deploy` started before: make stop\n"
        f"variables that runs need (HF_TOKEN=…), a line each: {settings_file()}, readable by you alone"
    )


def _say_written(paths: list[Path]) -> None:
    for path in paths:
        _server.say(f"written: {path}")
    _server.say(how_to_enable([path.name for path in paths]))


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _command(*arguments: str) -> str:
    """A line for ExecStart. `env` goes first since systemd takes fewer characters in the first path than a folder may
    have; the colon keeps a $ what it is.
    """
    words = [sys.executable, "-m", "flows._units", *arguments]
    return f":{shutil.which('env') or '/usr/bin/env'} {' '.join(map(_quoted, words))}"


def _quoted(word: str) -> str:
    """A word of a command or of Environment= as systemd reads it back."""
    return '"' + _specified(word).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _specified(text: str) -> str:
    """Text in which no % begins a specifier.

    Raises:
        UnitError: it holds a break of line or another control character, or ends in a backslash, which joins lines.
    """
    if not text.isprintable() or text.endswith("\\") or text != text.strip():
        raise UnitError("a unit file cannot name this path", found=repr(text), fix="give the clone a plainer folder")
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
