"""Following a flow run from a terminal: its stages, their progress and their warnings, then what came out."""

import math
import time
from collections.abc import Collection
from pathlib import Path
from uuid import UUID

import anyio
import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import Artifact, FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelling
from rich.console import Console
from rich.progress import Progress, TaskID

from engine.reports.markdown import plain
from engine.runs import RunRecord
from engine.secrets import outgoing
from flows._progress import SEPARATOR, bars
from flows._terminal import in_short, show_results

POLL_SECONDS = 0.7
CANCEL_SECONDS = 40.0  # a cancelled run has 30 s to write a checkpoint before it is killed
_WARNING = 30
UNANSWERED = (httpx.HTTPError, ObjectNotFound)  # what a server that is gone, in trouble or new makes of a question
_GONE = (
    "The Prefect server no longer answers for this run. The run goes on without it and seals its stages as they "
    "finish; how it ends is told in artifacts/runs/. Run the same command again: what is finished is reused."
)
_UNSTARTED = "The Prefect server does not answer, and no run is known to have started; `make stop`, then try again."
_UNTOLD = (
    "The Prefect server does not answer, so the run may go on; `make stop` ends it. What is sealed is kept, and what "
    "was trained up to the last checkpoint."
)
_STOPPED = "Stopped. What is sealed and what was trained so far is kept; the same command goes on from there."
_STOPPING = (
    "The run is still stopping: it writes what was trained so far, and is killed where that takes too long. The same "
    "command goes on from there once it is over."
)
_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def run_deployment(name: str) -> int:
    """Starts a run of a deployment and follows it to its end. Returns 0 when it completed, 1 when not."""
    console, trouble = Console(highlight=False), _UNSTARTED
    try:
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
            address, trouble = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}", _GONE
            _say(console, f"running {name}: {address}")
            run = _followed(client, run.id, console)
    except UNANSWERED as error:
        _say(console, f"{trouble} ({type(error).__name__}: {error})")
        return 1
    completed = _show_end(run, console)
    _say(console, f"browse  {address}")
    return 0 if completed else 1


def _followed(client: SyncPrefectClient, run_id: UUID, console: Console) -> FlowRun:
    """Shows a run until it is over and returns it; Ctrl-C cancels it."""
    try:
        with bars(console) as live:
            return Watch(client, run_id, live).follow()
    except KeyboardInterrupt:
        cancel(client, run_id, console)
        raise


def _show_end(run: FlowRun, console: Console) -> bool:
    """Says how a run ended, with its numbers if it did well; whether it did."""
    state = run.state
    if state is None or not state.is_completed():
        _say(console, f"{state.name}: {state.message}" if state else "the run is lost")
        return False
    report = Path((state.message or "").rpartition("\n")[2])
    if report.is_file():  # not so where the worker is on another machine
        record = RunRecord.load(report.parent)
        show_results(record, record.decisions)
    return True


def cancel(client: SyncPrefectClient, run_id: UUID, console: Console) -> None:
    """Cancels a run, waits until it has written what it has, and says what became of it. A second Ctrl-C does not wait.

    A server that does not answer is said and is no error.
    """
    _say(console, "cancelling the run; Ctrl-C again does not wait for its checkpoint")
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}):  # Prefect's own number takes a minute
            client.set_flow_run_state(run_id, Cancelling())
            over = _over_in_time(client, run_id)
    except UNANSWERED as error:
        _say(console, f"{_UNTOLD} ({type(error).__name__}: {error})")
        return
    _say(console, _STOPPED if over else _STOPPING)
    _say(console, "The server and the worker go on; `make stop` ends them.")


def _over_in_time(client: SyncPrefectClient, run_id: UUID) -> bool:
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        state = client.read_flow_run(run_id).state
        if state is not None and state.is_final():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def _say(console: Console, text: str) -> None:
    """Prints text that others may have written: without secrets, and so that nothing in it acts on the terminal."""
    console.print(outgoing(text), markup=False, soft_wrap=True)


class Watch:
    """What of one flow run was shown already."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID, bars: Progress) -> None:
        self._client, self._bars = client, bars
        self._run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        self._id = run_id
        self._bar_of: dict[str, TaskID] = {}
        self._over: set[UUID] = set()
        self._logs = 0

    def follow(self) -> FlowRun:
        """Shows the run until it is over and returns it."""
        while True:
            run = self._client.read_flow_run(self._id)
            self._show_warnings()
            self._show_stages()
            if run.state is not None and run.state.is_final():
                return run
            time.sleep(POLL_SECONDS)

    def _show_stages(self) -> None:
        stages = self._client.read_task_runs(flow_run_filter=self._run)
        texts = {artifact.task_run_id: artifact for artifact in self._progress()}
        for stage in sorted(stages, key=_begin):
            if stage.id in self._over or stage.state is None:
                continue
            if stage.state.is_final():
                self._over.add(stage.id)
                self._remove_bar(stage.name)
                _say(self._bars.console, plain(_ending(stage)))
            elif stage.state.is_running():
                artifact = texts.get(stage.id)
                percent = float(str(artifact.data)) if artifact else None
                self._show_bar(stage.name, percent, (artifact.description or "") if artifact else "")

    def _progress(self) -> list[Artifact]:
        wanted = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]))
        return self._client.read_artifacts(artifact_filter=wanted, flow_run_filter=self._run)

    def _show_bar(self, name: str, percent: float | None, text: str) -> None:
        if name not in self._bar_of:
            self._bar_of[name] = self._bars.add_task(plain(name), total=None, parts=list)
        bar, parts = self._bar_of[name], [part for part in plain(text).split(SEPARATOR) if part]
        total = None if percent is None else 100.0
        self._bars.update(bar, total=total, completed=percent or 0.0, parts=lambda: parts)

    def _remove_bar(self, name: str) -> None:
        if name in self._bar_of:
            self._bars.remove_task(self._bar_of.pop(name))

    def _show_warnings(self) -> None:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self._id]), level=LogFilterLevel(ge_=_WARNING))
        logs = self._client.read_logs(wanted, offset=self._logs, sort=LogSort.TIMESTAMP_ASC)
        self._logs += len(logs)
        for log in logs:
            _say(self._bars.console, log.message)


def _begin(stage: TaskRun) -> float:
    return stage.start_time.timestamp() if stage.start_time else math.inf


def _ending(stage: TaskRun) -> str:
    state = stage.state
    assert state is not None
    seconds = stage.total_run_time.total_seconds()
    mark = "✓" if state.is_completed() else "✗"
    message = in_short((state.message or "").partition("\n")[0])
    return f"{mark} {stage.name:<10} {state.name or '':<10} {seconds:6.1f} s  {message}"


async def cancel_runs(ids: Collection[UUID]) -> None:
    """Cancels those of the runs that are under way, and waits until they are over.

    Raises:
        UNANSWERED: the server does not do what it is asked.
    """
    if not ids:
        return
    under_way = FlowRunFilter(
        id=FlowRunFilterId(any_=list(ids)),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY)),
    )
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=under_way):
            await client.set_flow_run_state(run.id, Cancelling())
        with anyio.move_on_after(CANCEL_SECONDS):
            while await client.read_flow_runs(flow_run_filter=under_way):
                await anyio.sleep(POLL_SECONDS)
