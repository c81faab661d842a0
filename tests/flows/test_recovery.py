"""Runs under a real server and worker whose processes are killed, cancelled or left alone by the server."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect import flow, get_client
from prefect.states import Cancelling, Running

from flows import _processes
from flows._automation import close_unheard_runs
from flows._processes import Service

pytestmark = pytest.mark.slow
STOP_SECONDS = 15.0
DONE = ("Completed", "Kept")  # the gate refuses what so small a training makes


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        for each in [process, *process.children(recursive=True)]:
            each.kill()


def test_a_killed_run_is_marked_crashed_and_the_same_command_goes_on_from_its_checkpoint(clone: Any) -> None:
    first = clone.start("nightly")
    clone.wait_for(clone.checkpoints)
    kill(*clone.engines(), clone.service("worker"))
    name, message = clone.ends_as(first)
    assert name == "Crashed"
    assert "Run the same command again" in message

    assert clone.server("up").returncode == 0
    second = clone.start("nightly")  # cancelled at once if the first still held its place
    assert clone.ends_as(second)[0] in DONE
    assert "going on from the checkpoint at step" in clone.prefect("flow-run", "logs", second).stdout
    actions = [each["action"] for each in clone.record()["stages"]]
    assert actions == ["reuse"] * 5 + ["resume", "run", "run", "run"]
    assert clone.state(first)[0] == "Crashed"

    whole = clone.dpo("run", "--profile", "tiny", "--until", "train", "--set", "runtime.artifacts=whole")
    assert whole.returncode == 0, whole.stderr
    interrupted, uninterrupted = clone.adapters()
    assert interrupted == uninterrupted


def test_a_cancelled_run_leaves_a_checkpoint_and_no_process_within_seconds(
    clone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = clone.start("default", "seed=1")
    clone.wait_for(clone.checkpoints)
    engines, before = clone.engines(), set(clone.checkpoints())
    monkeypatch.setattr(_processes, "HOME", clone.root / ".prefect")
    assert Service("worker").runs() == {UUID(run)}, "`make stop` would not cancel it"
    began = time.monotonic()
    assert clone.prefect("flow-run", "cancel", run).returncode == 0
    clone.wait_for(lambda: not any(process.is_running() for process in engines))
    assert time.monotonic() - began < STOP_SECONDS
    clone.wait_for(lambda: clone.state(run)[0] == "Cancelled")  # Crashed for the seconds until its worker says why
    assert clone.record()["state"] == "cancelled"
    assert set(clone.checkpoints()) - before, "the steps since the last checkpoint are lost"


def test_stages_are_finished_without_the_server_and_the_next_run_reuses_them(clone: Any) -> None:
    before = set(clone.checkpoints())
    first = clone.start("default", "seed=2")
    clone.wait_for(lambda: set(clone.checkpoints()) - before)
    engines = clone.engines()
    kill(clone.service("server"))
    began = time.monotonic()
    clone.wait_for(lambda: len(clone.record()["stages"]) == 9)
    assert time.monotonic() - began < 60, "the lost server held the training up"
    clone.wait_for(lambda: not any(process.is_running() for process in engines), 120)
    record = clone.record()
    assert record["state"] == "completed"
    assert "the Prefect server stopped answering during train" in record["error"]

    assert clone.server("up", "--port", str(clone.port)).returncode == 0
    assert clone.state(first)[0] == "Crashed"  # so say the worker, the automation or `up`: whoever comes first
    again = clone.start("default", "seed=2")
    assert clone.ends_as(again)[0] in DONE
    assert [each["action"] for each in clone.record()["stages"]] == ["reuse"] * 9


@pytest.mark.parametrize(("begun", "end"), [(Running(), "CRASHED"), (Cancelling(), "CANCELLED")])
def test_a_run_without_a_process_is_closed_in_a_way_that_the_server_takes(server: None, begun: Any, end: str) -> None:
    name = uuid4().hex

    async def story() -> tuple[int, str]:
        async with get_client() as client:
            made = await client.create_flow_run(flow(name=name)(lambda: None))
            await client.update_flow_run(made.id, infrastructure_pid="4194305")
            for state in (Running(), begun):
                await client.set_flow_run_state(made.id, state)
            return await close_unheard_runs(name), (await client.read_flow_run(made.id)).state_type.value

    assert asyncio.run(story()) == (1, end)
    assert asyncio.run(close_unheard_runs(name)) == 0
