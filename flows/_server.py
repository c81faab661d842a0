"""The Prefect server and worker of this clone: start, stop, deploy, switch the schedule and notices, run the demo.

Beside them a server of the runs' reports is started: see `flows._reports`.

`python -m flows._server demo|up|deploy|stop|nightly-on|nightly-off|notify [--port N]`: what the Makefile calls.
State lies in `.prefect/`: the server's database, logs, and one file per process that was started here.
Where PREFECT_API_URL is set, that server is used and none is started.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from uuid import UUID

import psutil

from engine.errors import PipelineError
from engine.secrets import outgoing
from flows._processes import HOME, REPORTS, ROOT, SERVER, WORKER

POOL = "dpo"
FLOW = "dpo-pipeline"
PORT = 4200
START_SECONDS = 180.0
REPORTS_SECONDS = 30.0


class ServerError(PipelineError):
    """The server or the worker cannot be started or reached."""


def main() -> int:
    """The command line; 0 when all went well, 1 when not."""
    actions: dict[str, Callable[[int], int | None]] = {
        "up": up,
        "deploy": deploy,
        "demo": demo,
        "stop": stop,
        "nightly-on": partial(switch_nightly, True),
        "nightly-off": partial(switch_nightly, False),
        "notify": lambda port: notify(arguments.url, port),
    }
    parser = argparse.ArgumentParser(prog="python -m flows._server", description="the Prefect server of this clone")
    parser.add_argument("action", choices=actions)
    parser.add_argument("--port", type=int, default=0, help=f"of a server to start ({PORT})")
    parser.add_argument("--url", default=os.environ.get("DPO_NOTIFY_URL", ""), help="where notices go; for notify")
    arguments = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    try:
        return actions[arguments.action](arguments.port) or 0
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def up(port: int = 0) -> None:
    """Starts the server, the worker and the server of reports where they are not running; waits for the first.

    Raises:
        ServerError: the port is taken by something else, or the server does not come up.
    """
    server = choose_server(port)
    with _alone():
        if isinstance(server, int):
            _start_server(server)
            close_unheard()
        elif not answers():
            raise ServerError(f"no Prefect server answers at {server}", fix="unset PREFECT_API_URL to have one started")
        _start_reports(server if isinstance(server, int) else PORT)
        if not WORKER.state():
            say("starting the worker")
            WORKER.start(["worker", "start", "--pool", POOL, "--type", "process"])


def deploy(port: int = 0) -> None:
    """Starts what is needed and puts the deployments of prefect.yaml on the server; schedules stay as they are.

    Runs of the flow that are killed are marked as Crashed from then on: see `flows._automation`.

    Raises:
        ServerError: as `up`; or the deployments are refused.
        ConfigError: DPO_CRASHED_AFTER is not what it may be; nothing is deployed then.
    """
    up(port)
    from flows._automation import set_up, silence_seconds

    silence_seconds()  # what is wrong with it is said before anything is deployed
    say("deploying")
    with _alone():
        asyncio.run(make_pool())
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ServerError("`prefect deploy --all` failed", found=(done.stdout + done.stderr).strip()[-2000:])
    with _alone():
        asyncio.run(set_up(FLOW))


def demo(port: int = 0) -> int:
    """Runs dpo-pipeline/default to its end, showing how far it is. Returns 1 when the run did not complete.

    Ctrl-C and SIGTERM cancel the run, which leaves a checkpoint; the server and the worker stay.
    """
    deploy(port)
    from flows._watch import run_deployment

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = run_deployment(f"{FLOW}/default")
    if os.environ["PREFECT_API_URL"] != f"http://127.0.0.1:{PORT}/api":  # the one that prefect.toml names
        say(f"by hand PREFECT_API_URL={os.environ['PREFECT_API_URL']} prefect deployment run {FLOW}/default --watch")
    return failed


def stop(port: int = 0) -> None:
    """Cancels the runs of this clone's worker and ends what was started here, and only that."""
    choose_server(0)
    if (runs := WORKER.runs()) and answers():
        cancel(runs)
    for service in (WORKER, REPORTS, SERVER):
        say(f"{service.name}: {'stopped' if service.stop() else 'was not running'}")


def cancel(runs: set[UUID]) -> None:
    """Has the runs write their checkpoints. A server that fails at it keeps nothing from being ended."""
    from flows._watch import UNANSWERED, cancel_runs  # imports Prefect, which reads the address when it is imported

    try:
        asyncio.run(cancel_runs(runs))
    except (*UNANSWERED, OSError) as error:
        say(outgoing(f"the runs under way could not be cancelled: {type(error).__name__}: {error}"))


def switch_nightly(active: bool, port: int = 0) -> None:
    """Switches the schedule of dpo-pipeline/nightly, which is deployed first."""
    deploy(port)
    from prefect import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"{FLOW}/nightly")
        for schedule in client.read_deployment_schedules(deployment.id):
            client.update_deployment_schedule(deployment.id, schedule.id, active=active)
    say("nightly is on, while server and worker are up (`make stop` ends both)" if active else "nightly is off")


def notify(url: str, port: int = 0) -> None:
    """Has the server send a notice to a webhook when a run ends badly or a night does not begin.

    Raises:
        ServerError: as `up`.
        ConfigError: the address is none.
        NoticeError: it takes no notice, as was tried; nothing is set up then.
    """
    choose_server(port)
    from flows import _notices

    checked = _notices.checked(url)
    up(port)
    say(f"a notice was sent to try the address: HTTP status {_notices.try_out(checked, FLOW)}")
    with _alone():
        asyncio.run(_notices.set_up(FLOW, checked))
    say("notices are on; to pause them, or to read what was sent: Automations in the UI")


async def nightly_state() -> dict[str, bool]:
    """Whether the nightly schedule is on now; a step of prefect.yaml, so that deploying again does not change it."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        try:
            deployment = await client.read_deployment_by_name(f"{FLOW}/nightly")
        except ObjectNotFound:
            return {"active": False}
    return {"active": any(schedule.active for schedule in deployment.schedules)}


def choose_server(port: int) -> str | int:
    """The address of the user's own server, or the port of this clone's; Prefect reads it when it is imported."""
    os.environ["PREFECT_HOME"] = str(HOME)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"]
    running = SERVER.state().get("port")
    if port and running and port != running:
        raise ServerError(f"the server of this clone runs on port {running}", fix=f"make stop, then PORT={port} again")
    chosen = int(running or port or PORT)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{chosen}/api"
    return chosen


def _start_server(port: int) -> None:
    if not SERVER.state():
        if _taken(port):
            raise ServerError(
                f"port {port} is taken by something that was not started here",
                fix=f"make demo PORT={port + 100}; or, if it is a Prefect server that you want to use,\n"
                f"       PREFECT_API_URL=http://127.0.0.1:{port}/api make demo",
            )
        say(f"starting the Prefect server on port {port} (log: {os.path.relpath(SERVER.log)})")
        SERVER.start(["server", "start", "--host", "127.0.0.1", "--port", str(port)], port=port)
    began = time.monotonic()
    while not answers():
        if not SERVER.state() or time.monotonic() - began > START_SECONDS:
            raise ServerError("the Prefect server did not come up", found=SERVER.last_words(), where=str(SERVER.log))
        time.sleep(0.3)


def _start_reports(port: int) -> None:
    """Has the runs' reports served; that they cannot be keeps nothing from running."""
    if REPORTS.state():
        return
    while chosen := free_port(port + 1):
        REPORTS.start(["--port", str(chosen)], port=chosen)
        if _reports_listen():
            say(f"serving the runs' reports on http://127.0.0.1:{chosen}/")
            return
        REPORTS.stop()
        if not _taken(chosen):  # else somebody was faster, and the next port is as good
            say(f"the runs' reports are not served (log: {os.path.relpath(REPORTS.log)}): {REPORTS.last_words()}")
            return
    say(f"the runs' reports are not served: no port from {port + 1} on is free")


def _reports_listen() -> bool:
    """Waits until the process that was started listens, whoever else answers on its port; False where it does not."""
    deadline = time.monotonic() + REPORTS_SECONDS
    with contextlib.suppress(psutil.Error, KeyError):
        process = psutil.Process(REPORTS.state()["pid"])
        while time.monotonic() < deadline and process.status() != psutil.STATUS_ZOMBIE:
            if any(each.status == psutil.CONN_LISTEN for each in process.net_connections()):
                return True
            time.sleep(0.1)
    return False


def free_port(first: int) -> int | None:
    """The first port from `first` on that nothing listens on, of 20; None where there is none."""
    return next((port for port in range(first, min(first + 20, 65_536)) if not _taken(port)), None)


def close_unheard() -> None:
    """Marks the runs that ended while this clone's server was down; to be called once it answers."""
    from flows._automation import close_unheard_runs  # imports Prefect, which reads the address when it is imported

    if closed := asyncio.run(close_unheard_runs(FLOW)):
        say(f"{closed} {'run' if closed == 1 else 'runs'} that ended unheard, marked as crashed")


def answers() -> bool:
    """Whether the chosen server does."""
    try:
        with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def make_pool() -> None:
    """Creates the work pool where it is not there."""
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    async with get_client() as client:
        template = ProcessWorker.get_default_base_job_template()
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two `make` at once start one server: the second waits for the first."""
    with (HOME / "starting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
