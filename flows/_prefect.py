"""What the pipeline looks like to Prefect: a stage as a task, its logs, its progress, and what it publishes."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import Task, get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from engine.config import Settings
from engine.errors import PipelineError, TransientError
from engine.pipeline import Pipeline, Selection
from engine.reports import stage_report
from engine.reports.gate import refusal
from engine.reports.markdown import code, duration, escape, number, plain, table
from engine.reports.run import run_report
from engine.runs import REPORT, RunRecord
from engine.secrets import outgoing
from engine.stage import Decision, Listener, Stage
from engine.store import Artifact
from flows._line import Line, ServerGoneError
from flows._logs import forwarded_logs, in_words

PROGRESS_SECONDS = 2.0  # the least time between two updates of one progress artifact
MARKDOWN_BYTES = 90_000  # the list call of the UI returns every artifact's whole text
_KEYS = {"beta": "train.beta", "seed": "train.seed", "pairs": "subsample.pairs"}
_log = logging.getLogger("dpo")


class Board(Listener):
    """Shows a run in Prefect's UI and keeps its record. What cannot be shown is logged and fails no stage."""

    def __init__(self, record: RunRecord, line: Line) -> None:
        self._record, self._line = record, line
        self._shown: dict[str, UUID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._next = 0.0

    def started(self, decision: Decision) -> None:
        _log.info("%s: %s (%s)", decision.stage, decision.action, decision.why)

    def progressed(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if stage not in self._began:  # a stage that is over within seconds shows its result and no progress
            self._began[stage], self._next = (now, done), now + PROGRESS_SECONDS
        over = done >= total and stage in self._shown
        if total <= 0 or (now < self._next and not over):
            return
        began, first = self._began[stage]
        left = (now - began) / (done - first) * (total - done) if done > first else None
        self._show(stage, 100.0 * done / total, progress_text(done, total, numbers, left))
        self._next = now + PROGRESS_SECONDS

    def _show(self, stage: str, percent: float, text: str) -> None:
        def show() -> None:
            if stage in self._shown:
                update_progress_artifact(self._shown[stage], progress=percent, description=text)
            else:
                key = f"dpo-{stage}-progress"
                self._shown[stage] = create_progress_artifact(percent, key=key, description=text)  # type: ignore[assignment]

        self._line.tell(f"the progress of {stage}", show, during=stage)

    def finished(self, decision: Decision, artifact: Artifact | None) -> None:
        self._record.add(decision, artifact)
        key = f"dpo-{decision.stage}"
        publish(self._line, key, lambda: stage_report(artifact, decision), during=decision.stage)


class Run:
    """One run of the pipeline inside a flow run; what the stages' tasks are given."""

    def __init__(self, pipeline: Pipeline, record: RunRecord) -> None:
        self._pipeline, self._record = pipeline, record
        self._failure: Exception | None = None

    def make(self, name: str) -> State[Decision]:
        """Makes, reuses or skips one stage and says which as a state, with the decision as its result."""
        try:
            with in_words(name):
                decision = self._pipeline.run(self._pipeline.stages[name])
        except PipelineError as error:
            self._failure = error
            raise
        label = {"reuse": "Reused", "skip": "Skipped"}.get(decision.action)
        message = str(decision.path.resolve()) if decision.path else decision.why
        return Completed(name=label, message=outgoing(message), data=decision)

    def failed_by(self, error: Exception) -> bool:
        """Whether it is a stage's own error, and not one of Prefect's around it."""
        return error is self._failure

    def finish(self) -> None:
        """Makes what is left of the stages, without Prefect."""
        for name in [name for name in self._pipeline.stages if name not in self._pipeline.decisions]:
            self.make(name)

    def completed(self) -> State[None]:
        """The flow's last state; its message ends with the path of the report.

        Where the gate refused the model it is named Kept, after the one in service, and begins with the reasons.
        """
        report = str(self._record.folder.resolve() / REPORT)
        refused = refusal(self._record.artifact("promote"))
        if not refused:
            return Completed(message=report)
        return Completed(name="Kept", message=f"{outgoing(refused)}\n{report}")


def as_task(name: str, *, retries: int = 2) -> Task[..., State[Decision]]:
    """The stage `name` as a task: called with the run and the decisions on the stages above it.

    Only transient trouble is retried, after 10 s, 20 s, 40 s and so on. Prefect caches and stores nothing of it.
    """

    def make(run: Run, *above: Decision) -> State[Decision]:
        return run.make(name)

    return Task(
        make,
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=exponential_backoff(10),
        retry_jitter_factor=0.2,
        retry_condition_fn=is_transient,
    )


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage may do better on another attempt."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


@contextmanager
def started(stages: Sequence[Stage[Any]], settings: Settings, selection: Selection) -> Iterator[Run]:
    """A run whose stages log into the flow run, whose record says how it ended, and which publishes its report.

    Raises:
        ServerGoneError: at the end, when every stage is over and the server does not answer.
        PipelineError: every other error too, in words that Prefect may keep.
    """
    with forwarded_logs(), in_words("the run"):
        record, line = RunRecord.start(settings, selection, settings.runtime.artifacts), Line()
        with _recorded(record, line):
            line.tell("the run's tags", lambda: _tag(settings))
            run = Run(Pipeline(stages, settings, selection, Board(record, line)), record)
            with _outlasting(run, line):
                yield run


@contextmanager
def _outlasting(run: Run, line: Line) -> Iterator[None]:
    """Brings the stages to their end where only Prefect fails, because its server is gone."""
    try:
        yield
    except Exception as error:
        if run.failed_by(error) or line.answers():
            raise
        run.finish()
    if not line.answers_at_last():
        raise line.gone()


@contextmanager
def _recorded(record: RunRecord, line: Line) -> Iterator[None]:
    """Writes down and publishes how the run ended, however it ends."""
    try:
        yield
    except ServerGoneError as error:
        record.finish("completed", str(error))
        raise
    except PipelineError as error:
        record.finish("failed", str(error))
        raise
    except Exception as error:
        record.finish("failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException:  # Prefect's TerminationSignal: the run is cancelled, or its worker is going down
        record.finish("cancelled")
        raise
    else:
        record.finish("completed")
    finally:
        publish(line, "dpo-run", lambda: run_report(record))


def show_plan(stages: Sequence[Stage[Any]], settings: Settings, selection: Selection) -> State[None]:
    """Logs and publishes what every stage would do, and why; runs nothing and uses no network."""
    with forwarded_logs(), in_words("the plan"):
        decisions = Pipeline(stages, settings, selection, network=False).plan()
    for decision in decisions:
        get_run_logger().info("%s: %s (%s)", decision.stage, decision.action, decision.why)
    publish(Line(), "dpo-plan", lambda: plan_table(decisions))
    return Completed(name="Planned", message=", ".join(f"{d.stage}: {d.action}" for d in decisions))


def plan_table(decisions: Sequence[Decision]) -> str:
    """A plan as a markdown table."""
    rows = [[d.stage, d.action, escape(d.why), code(d.path) if d.path else ""] for d in decisions]
    return table(["stage", "action", "why", "artifact"], rows) + "\n"


def progress_text(done: int, total: int, numbers: Mapping[str, float], left: float | None) -> str:
    """One line such as `120 of 450 · loss 0.612 · 1 min 20 s left`; `left` in seconds, None when unknown."""
    parts = [f"{done} of {total}", *(f"{name} {number(value)}" for name, value in numbers.items())]
    if left is not None and done < total:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)


def changes(overrides: Sequence[str], **parameters: float | int | None) -> list[str]:
    """The overrides with the flow's own parameters after them, as key=value; a parameter of None changes nothing."""
    given = {_KEYS[name]: value for name, value in parameters.items() if value is not None}
    return [*overrides, *(f"{key}={value!r}" for key, value in given.items())]


def run_name() -> str:
    """The name of the flow run: its profile, and what its caller set apart from it."""
    given: Mapping[str, Any] = flow_run.parameters
    profile = str(given["profile"]).removesuffix(".toml").rpartition("/")[2]
    words = [profile, *(f"{name} {given[name]}" for name in _KEYS if given.get(name) is not None)]
    words += [f"{word} {given[name]}" for name, word in _SELECTORS.items() if given.get(name)]
    words += [word for name, word in (("force", "forced"), ("plan_only", "plan")) if given.get(name)]
    return plain(", ".join(words))


_SELECTORS = {"only": "only", "from_stage": "from", "until": "until"}


def publish(line: Line, key: str, write: Callable[[], str], *, during: str = "") -> None:
    """Publishes markdown under a stable key, so that the UI shows its history from run to run."""

    def create() -> None:
        markdown = write().encode()[:MARKDOWN_BYTES].decode(errors="ignore")
        create_markdown_artifact(markdown, key=key)

    line.tell(f"the report {key}", create, during=during)


def _tag(settings: Settings) -> None:
    with get_client(sync_client=True) as client:
        tags = [*flow_run.tags, f"profile:{settings.profile}", f"beta:{getattr(settings.stages['train'], 'beta', '')}"]
        client.update_flow_run(UUID(flow_run.id), tags=sorted(set(map(plain, tags))))
