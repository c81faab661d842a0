"""What the pipeline looks like to Prefect: a stage as a task, its logs, its progress, and what it publishes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from engine.config import Settings
from engine.errors import PipelineError, TransientError
from engine.pipeline import Pipeline, Selection
from engine.reports.gate import refusal
from engine.reports.markdown import code, escape, plain, table
from engine.runs import REPORT, RunRecord
from engine.secrets import outgoing
from engine.stage import Decision, Stage
from flows._board import Board
from flows._line import Line, ServerGoneError
from flows._logs import forwarded_logs, in_words
from flows._pages import OUTCOMES, publish, publish_link, tag_run, tell_end
from flows._reports import note_root

_KEYS = {"beta": "train.beta", "seed": "train.seed", "pairs": "subsample.pairs"}


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
        label = OUTCOMES[decision.action]
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
            note_root(settings.runtime.artifacts)
            line.tell("the run's name and tags", lambda: tag_run(settings, run_name()))
            publish_link(line, record)
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
        tell_end(line, record)


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
