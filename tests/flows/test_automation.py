import asyncio
import logging
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Running

from engine.errors import ConfigError
from flows import _automation
from flows._automation import close_unheard_runs, crash_automation, set_up, silence_seconds

GONE = "4194305"  # above the highest number a process can have


class Server:
    """Stands in for the client of a server that keeps automations."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}
        self.refuses = False
        self.runs: list[Any] = []
        self.later: dict[Any, Any] = {}  # what a run is when it is read once more
        self.states: dict[Any, Any] = {}
        self.refused: set[Any] = set()

    async def read_flow_runs(self, **_: Any) -> list[Any]:
        return self.runs

    async def read_flow_run(self, id: Any) -> Any:
        if id in self.later and self.later[id] is None:
            raise ObjectNotFound(RuntimeError("404"))
        return self.later.get(id) or next(run for run in self.runs if run.id == id)

    async def set_flow_run_state(self, id: Any, state: Any, force: bool = False) -> Any:
        assert not force
        self.states[id] = state
        return SimpleNamespace(status=SetStateStatus.REJECT if id in self.refused else SetStateStatus.ACCEPT)

    async def read_automations_by_name(self, name: str) -> list[Any]:
        if self.refuses:
            raise RuntimeError("404 Not Found")
        return [SimpleNamespace(id=id, enabled=each.enabled) for id, each in self.kept.items() if each.name == name]

    async def create_automation(self, wanted: Any) -> None:
        self.kept[uuid4()] = wanted

    async def update_automation(self, id: Any, wanted: Any) -> None:
        self.kept[id] = wanted

    async def delete_automation(self, id: Any) -> None:
        del self.kept[id]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    @asynccontextmanager
    async def client() -> Any:
        yield server

    monkeypatch.setattr(_automation, "get_client", client)
    monkeypatch.delenv("DPO_CRASHED_AFTER", raising=False)
    return server


def test_setting_up_again_changes_the_one_automation_and_leaves_it_paused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(set_up("dpo-pipeline"))
    (first,) = server.kept
    server.kept[first] = server.kept[first].model_copy(update={"enabled": False})
    server.kept[uuid4()] = server.kept[first]
    monkeypatch.setenv("DPO_CRASHED_AFTER", "45")
    asyncio.run(set_up("dpo-pipeline"))
    (kept,) = server.kept.values()
    assert kept.trigger.within.total_seconds() == 45
    assert kept.enabled is False


def test_a_server_that_refuses_automations_is_a_warning(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.refuses = True
    with caplog.at_level(logging.WARNING, "dpo"):
        asyncio.run(set_up("dpo-pipeline"))
    assert "took no automation" in caplog.text
    assert "stays Running" in caplog.text


def test_a_run_whose_process_is_gone_is_closed_when_the_server_comes_back(server: Server) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "prefect.engine"]) as alive:
        pids = {"gone": GONE, "reused": str(os.getppid()), "alive": str(alive.pid), "unsent": None, "odd": "pod/x"}
        server.runs = [run(name, pid) for name, pid in pids.items()]
        try:
            assert asyncio.run(close_unheard_runs("dpo-pipeline")) == 2
        finally:
            alive.kill()
    assert set(server.states) == {"gone", "reused"}
    assert server.states["gone"].is_crashed()
    assert "Run the same command again" in server.states["gone"].message


def run(id: str, pid: str | None = GONE, state: Any = None) -> Any:
    return SimpleNamespace(id=id, infrastructure_pid=pid, state=state or Running())


@pytest.mark.parametrize("now", [run("a", state=Completed()), run("a", state=Cancelled()), run("a", None), None])
def test_a_run_that_is_over_or_begun_anew_or_deleted_by_then_is_left_alone(server: Server, now: Any) -> None:
    server.runs, server.later = [run("a")], {"a": now}
    assert asyncio.run(close_unheard_runs("dpo-pipeline")) == 0
    assert server.states == {}


def test_a_run_that_the_server_does_not_let_be_closed_is_not_counted(server: Server) -> None:
    server.runs, server.refused = [run("a"), run("b")], {"a"}
    assert asyncio.run(close_unheard_runs("dpo-pipeline")) == 1


def test_a_run_that_was_being_cancelled_is_closed_as_the_server_allows(server: Server) -> None:
    server.runs = [run("a", state=Cancelling())]
    assert asyncio.run(close_unheard_runs("dpo-pipeline")) == 1
    assert server.states["a"].is_cancelled()


@pytest.mark.parametrize("chosen", ["30", "5", "0", "-3", "nan", "inf", "-inf", "1e300", "soon", "30s"])
def test_a_silence_that_no_run_could_keep_is_refused(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("DPO_CRASHED_AFTER", chosen)
    with pytest.raises(ConfigError, match="DPO_CRASHED_AFTER") as caught:
        silence_seconds()
    assert caught.value.found == chosen


def test_the_shortest_and_the_longest_silence_make_an_automation(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in ("30.5", "604800"):
        monkeypatch.setenv("DPO_CRASHED_AFTER", chosen)
        assert crash_automation("x", silence_seconds()).trigger.within.total_seconds() == float(chosen)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 50}):
        monkeypatch.setenv("DPO_CRASHED_AFTER", "45")
        with pytest.raises(ConfigError):
            silence_seconds()


def test_a_run_may_miss_two_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPO_CRASHED_AFTER", raising=False)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 50}):
        assert silence_seconds() == 150


def test_every_end_of_a_run_ends_the_watch_and_other_flows_are_left_alone() -> None:
    trigger = crash_automation("dpo-pipeline", 90.0).trigger
    ends = {each.rpartition(".")[2] for each in trigger.expect}
    assert ends >= {"heartbeat", "Completed", "Planned", "Failed", "Cancelled", "Crashed"}
    assert trigger.match_related.model_dump()["prefect.resource.name"] == ["dpo-pipeline"]
    assert trigger.for_each == {"prefect.resource.id"}
