"""Runs that cannot say themselves how they ended: killed ones, and those whose server was down by then.

An automation of the server marks the first as Crashed; the second are marked when the server is started again.
"""

import contextlib
import logging
import math
import os
from datetime import timedelta
from uuid import UUID

import psutil
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

from engine.errors import ConfigError

BEATS = 3  # heartbeats that may be missing; one alone is lost whenever the server is busy or starts again
LEAST_BEAT = 30  # seconds; Prefect beats no faster
LONGEST_SILENCE = 7 * 24 * 3600  # seconds; whoever wants to wait longer wants no automation
HEARTBEAT = "prefect.flow-run.heartbeat"
# Every state in which a run of ours is over; a plan ends in a state of its own name.
ENDS = ("Completed", "Kept", "Planned", "Failed", "TimedOut", "Cancelled", "Crashed")
MESSAGE = (
    "The process of this run gives no sign of life: it was killed, or its machine went down or lost the server. "
    "Nothing that was finished is lost. Run the same command again: finished stages are reused, and sft and train "
    "go on from their last checkpoint."
)
UNHEARD = (
    "The process of this run ended while the server was down; `dpo report`, or the last folder in artifacts/runs, says "
    "how. Nothing that was finished is lost. Run the same command again: what is finished is reused."
)
_log = logging.getLogger("dpo")


def silence_seconds() -> float:
    """How long a run may be silent before it counts as crashed: DPO_CRASHED_AFTER, or three heartbeats.

    Raises:
        ConfigError: DPO_CRASHED_AFTER is no number, or would call a run crashed between two heartbeats.
    """
    beat = max(get_current_settings().flows.heartbeat_frequency or LEAST_BEAT, LEAST_BEAT)
    chosen = os.environ.get("DPO_CRASHED_AFTER", "")
    if not chosen:
        return float(BEATS * beat)
    try:
        seconds = float(chosen)
    except ValueError:
        seconds = math.nan
    if not beat < seconds <= LONGEST_SILENCE:
        raise ConfigError(
            "DPO_CRASHED_AFTER is no number of seconds that a run may be silent",
            expected=f"above {beat}, which is when a heartbeat comes, and at most {LONGEST_SILENCE}",
            found=chosen,
            fix=f"unset it to allow {BEATS * beat} s",
        )
    return seconds


def crash_automation(flow: str, within: float) -> AutomationCore:
    """Marks each run of `flow` as Crashed that neither beats nor ends for `within` seconds after a heartbeat."""
    return AutomationCore(
        name=f"{flow}: killed runs are marked as crashed",
        description="Set up by `make deploy`; what is changed here is set again by the next one, but for being paused.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": [flow]}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=within),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=MESSAGE, force=False)],
    )


async def set_up(flow: str) -> None:
    """Creates the automation for the runs of a flow or brings it up to date; there is never a second one.

    A server that refuses it is a warning. Raises ConfigError as `silence_seconds`.
    """
    wanted = crash_automation(flow, silence_seconds())
    try:
        async with get_client() as client:
            await put(client, wanted)
    except Exception as error:  # a server that is too old or allows no automations deploys all the same
        _log.warning(
            "the server took no automation (%s: %s); a run that is killed stays Running until it is cancelled by hand",
            type(error).__name__,
            error,
        )


async def put(client: PrefectClient, wanted: AutomationCore) -> None:
    """Creates an automation, or brings the one of its name up to date; there is never a second one."""
    found = await client.read_automations_by_name(wanted.name)
    if not found:
        await client.create_automation(wanted)
        return
    kept, *extra = found
    await client.update_automation(kept.id, wanted.model_copy(update={"enabled": kept.enabled}))
    for each in extra:
        await client.delete_automation(each.id)


async def close_unheard_runs(flow: str) -> int:
    """Marks the runs of a flow as Crashed that are under way for the server and have no process on this machine.

    One that was being cancelled becomes Cancelled. What ends meanwhile, by its own word, is left alone.

    Returns:
        How many. Call it only for a server that all workers share this machine with.
    """
    under_way = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=under_way)),
        )
        return sum([await _closed(client, run.id) for run in runs])


async def _closed(client: PrefectClient, run_id: UUID) -> bool:
    """Ends one such run, as it is by now; False when there is nothing to end."""
    with contextlib.suppress(ObjectNotFound):
        end = _unheard_end(await client.read_flow_run(run_id))
        if end is not None:  # unforced: the server refuses it to a run that is over by now
            return (await client.set_flow_run_state(run_id, end)).status == SetStateStatus.ACCEPT
    return False


def _unheard_end(run: FlowRun) -> State[None] | None:
    """The state of a run whose process is gone; None while it has one, has none yet, or when it is over."""
    if run.state is None or not run.infrastructure_pid or _is_at_work(run.infrastructure_pid):
        return None
    if run.state.is_running():
        return Crashed(message=UNHEARD)
    return Cancelled(message=UNHEARD) if run.state.is_cancelling() else None  # which is what was asked of it


def _is_at_work(pid: str) -> bool:
    """Whether a process that runs a flow has that number; anything unclear counts as yes."""
    try:
        return "prefect.engine" in " ".join(psutil.Process(int(pid)).cmdline())
    except psutil.NoSuchProcess:
        return False
    except (ValueError, psutil.Error):
        return True
