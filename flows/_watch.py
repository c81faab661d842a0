"""Following a flow run from a terminal: its stages, their progress and their warnings, then what came out."""

import math
import time
from pathlib import Path
from uuid import UUID

import anyio
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
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import Artifact, FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import LogSort
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelling
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine.runs import RunRecord
from flows._terminal import show_results

POLL_SECONDS = 0.7
CANCEL_SECONDS = 40.0  # a cancelled run has 30 s to write a checkpoint before it is killed
_WARNING = 30
_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def run_deployment(name: str) -> int:
    """Starts a run of a deployment and follows it to its end. Returns 0 when it completed, 1 when not."""
    console = Console(highlight=False)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        run = client.create_flow_run_from_deployment(deployment.id)
        address = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run.id}"
        console.print(f"running {name}: {address}", soft_wrap=True)
        with _bars(console) as bars:
            run = Watch(client, run.id, bars).follow()
    state = run.state
    if state is None or not state.is_completed():
        console.print(f"{state.name}: {state.message}" if state else "the run is lost", markup=False, soft_wrap=True)
        console.print(f"browse  {address}", soft_wrap=True)
        return 1
    report = Path(state.message or "")
    if report.is_file():  # not so where the worker is on another machine
        record = RunRecord.load(report.parent)
        show_results(record, record.decisions)
        console.print(f"report  {_short(str(report))}", soft_wrap=True)
    console.print(f"browse  {address}", soft_wrap=True)
    return 0


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
                self._bars.console.print(_ending(stage), markup=False, soft_wrap=True)
            elif stage.state.is_running():
                artifact = texts.get(stage.id)
                percent = float(str(artifact.data)) if artifact else None
                self._show_bar(stage.name, percent, (artifact.description or "") if artifact else "")

    def _progress(self) -> list[Artifact]:
        wanted = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]))
        return self._client.read_artifacts(artifact_filter=wanted, flow_run_filter=self._run)

    def _show_bar(self, name: str, percent: float | None, text: str) -> None:
        if name not in self._bar_of:
            self._bar_of[name] = self._bars.add_task(name, total=None, text="")
        bar = self._bar_of[name]
        self._bars.update(bar, total=None if percent is None else 100.0, completed=percent or 0.0, text=text)

    def _remove_bar(self, name: str) -> None:
        if name in self._bar_of:
            self._bars.remove_task(self._bar_of.pop(name))

    def _show_warnings(self) -> None:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self._id]), level=LogFilterLevel(ge_=_WARNING))
        logs = self._client.read_logs(wanted, offset=self._logs, sort=LogSort.TIMESTAMP_ASC)
        self._logs += len(logs)
        for log in logs:
            self._bars.console.print(log.message, markup=False, soft_wrap=True)


def _begin(stage: TaskRun) -> float:
    return stage.start_time.timestamp() if stage.start_time else math.inf


def _ending(stage: TaskRun) -> str:
    state = stage.state
    assert state is not None
    seconds = stage.total_run_time.total_seconds()
    mark = "✓" if state.is_completed() else "✗"
    message = _short((state.message or "").partition("\n")[0])
    return f"{mark} {stage.name:<10} {state.name or '':<10} {seconds:6.1f} s  {message}"


def _short(text: str) -> str:
    return text.replace(f"{Path.cwd()}/", "")


def _bars(console: Console) -> Progress:
    columns = (
        TextColumn("  {task.description:<10}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    return Progress(*columns, console=console, transient=True)


async def cancel_runs(pool: str) -> None:
    """Cancels the runs of a work pool that are under way, and waits until they are over."""
    under_way = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY)))
    in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=under_way, work_pool_filter=in_pool):
            await client.set_flow_run_state(run.id, Cancelling())
        with anyio.move_on_after(CANCEL_SECONDS):
            while await client.read_flow_runs(flow_run_filter=under_way, work_pool_filter=in_pool):
                await anyio.sleep(POLL_SECONDS)
