import importlib.util
import json
import logging
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.states import Failed

import flows
from engine.config import load
from engine.errors import DataError, NumericsError, PipelineError, TransientError
from engine.pipeline import Selection
from engine.runs import latest
from engine.stage import Decision
from flows import _board, _line, _logs, _pages, _prefect
from flows._line import Line, ServerGoneError
from flows._logs import PlainErrors, UnforeseenError, in_words
from flows._pages import tag_key, tag_run
from flows._prefect import changes, is_transient, plan_table, run_name, started


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("the Hub did not answer"), True),
        (PipelineError("no"), False),
        (DataError("an empty file"), False),
        (NumericsError("NaN"), False),
        (ValueError("a bug"), False),
        (ConnectionError("not told apart by a stage"), False),
    ],
)
def test_only_transient_trouble_is_retried(error: Exception, transient: bool) -> None:
    assert is_transient(None, None, Failed(data=error)) is transient  # type: ignore[arg-type]


def test_parameters_become_overrides_that_toml_can_read_and_win_over_the_given_ones() -> None:
    assert changes(["train.beta=1", "x.y=z"], beta=1e-05, seed=None, pairs=25) == [
        "train.beta=1", "x.y=z", "train.beta=1e-05", "subsample.pairs=25",
    ]  # fmt: skip
    assert changes([], beta=None, seed=0, pairs=None) == ["train.seed=0"]


def test_a_run_is_named_by_its_profile_and_what_differs_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"profile": "demo", "beta": None, "force": False}
    monkeypatch.setattr(_prefect, "flow_run", SimpleNamespace(parameters=given))
    assert run_name() == "demo"
    given |= {"beta": 0.2, "from_stage": "train", "force": True}
    assert run_name() == "demo, beta 0.2, from train, forced"


def test_our_errors_are_logged_once_and_without_a_traceback() -> None:
    error = DataError("the file is empty", where="pairs.jsonl")
    first, second, bug = (
        logging.LogRecord("prefect.flow_runs", 40, "", 1, "Encountered %r", (each,), (type(each), each, None))
        for each in (error, error, ValueError("a bug"))
    )
    plain = PlainErrors()
    assert [bool(plain.filter(each)) for each in (first, second, bug)] == [True, False, True]
    assert first.getMessage() == "DataError: the file is empty\n  where: pairs.jsonl"
    assert first.exc_info is None
    assert bug.exc_info is not None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "completed"),
        (DataError("an empty file"), "failed"),
        (ValueError("a bug"), "failed"),
        (TerminationSignal(signal.SIGTERM), "cancelled"),
    ],
)
def test_a_run_is_recorded_as_it_ended_and_its_report_published(
    error: BaseException | None, state: str, story: Any, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[str] = []
    monkeypatch.setattr(_logs, "get_run_logger", lambda: logging.getLogger("elsewhere"))
    monkeypatch.setattr(_prefect, "tag_run", lambda settings, name: None)
    monkeypatch.setattr(_pages, "publish", lambda line, key, write, **_: published.append(key))
    settings = load(story.profile, [], story.stages(), {})
    told = UnforeseenError if isinstance(error, ValueError) else type(error)
    with pytest.raises(told) if error else nullcontext(), started(story.stages(), settings, Selection()):
        if error:
            raise error
    record = latest(settings.runtime.artifacts)
    assert record is not None
    assert record.state == state
    assert published == ["dpo-run"]
    assert logging.getLogger("dpo").propagate


@pytest.mark.parametrize(("verdict", "name"), [("keep", "Kept"), ("promote", "Completed"), ("", "Completed")])
def test_a_run_whose_gate_refuses_its_model_ends_as_kept_and_every_other_as_completed(
    verdict: str, name: str, story: Any, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(ctx: Any) -> None:
        rules = [{"name": "no-worse", "outcome": "failed", "words": "it is worse", "reason": ""}]
        (ctx.work / "verdict.json").write_text(json.dumps({"verdict": verdict, "rules": rules}))
        (ctx.work / "handed_down.json").write_text(json.dumps({"candidate": "tonight's"}))
        ctx.record(verdict=verdict, service="mine")

    monkeypatch.setattr(_logs, "get_run_logger", lambda: logging.getLogger("elsewhere"))
    monkeypatch.setattr(_prefect, "tag_run", lambda settings, name: None)
    monkeypatch.setattr(_pages, "publish", lambda line, key, write, **_: None)
    monkeypatch.setattr(_board, "tag_key", lambda key: None)
    story.hooks["promote"] = judge
    settings, selection = load(story.profile, [], story.stages(), {}), Selection(until=None if verdict else "compare")
    with started(story.stages(), settings, selection) as run:
        run.finish()
    state = run.completed()
    *reasons, report = (state.message or "").split("\n")
    assert (state.name, state.type) == (name, StateType.COMPLETED)
    assert Path(report).is_file()
    assert any("no-worse (failed): it is worse" in each for each in reasons) == (name == "Kept")


SECRET = "s3cr3t-value-of-mine"
ACTING = f"401 for {SECRET} \x1b]0;owned\x07"


def test_an_error_that_nobody_foresaw_is_told_without_secrets_and_its_traceback_is_in_the_log(
    bare: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(ctx: Any) -> None:
        raise ValueError(ACTING)

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(Line, "_client", SimpleNamespace(api_healthcheck=lambda: None))
    monkeypatch.setattr(_prefect, "tag_run", lambda settings, name: None)
    monkeypatch.setattr(_pages, "publish", lambda line, key, write, **_: None)
    monkeypatch.setattr(_board, "tag_key", lambda key: None)
    bare.hooks["tokenize"] = fail
    settings = load(bare.profile, [], bare.stages(), {})
    with pytest.raises(UnforeseenError) as caught, started(bare.stages(), settings, Selection()) as run:
        run.make("download")
        run.make("tokenize")
    assert "ValueError: 401 for ***" in str(caught.value)
    assert caught.value.__suppress_context__
    record = latest(settings.runtime.artifacts)
    assert record is not None
    assert record.state == "failed" and "tokenize ended by an error that was not foreseen" in record.error
    assert "Traceback" in caplog.text and "in fail" in caplog.text and "401 for ***" in caplog.text
    for text in (str(caught.value), record.error, caplog.text):
        assert SECRET not in text and "\x1b" not in text


def test_an_error_in_words_is_passed_on_and_found_where_prefect_failed_to_tell_it() -> None:
    told = DataError("the file is empty")
    lost = httpx.ConnectError("refused")
    lost.__context__ = told
    for error in (told, lost):
        with pytest.raises(DataError) as caught, in_words("train"):
            raise error
        assert caught.value is told


class Server:
    """Stands in for a client: the one flow run that it knows."""

    def __init__(self, name: str, *tags: str) -> None:
        self.run = SimpleNamespace(id=uuid4(), name=name, tags=list(tags))

    def read_flow_run(self, id: Any) -> Any:
        return self.run

    def update_flow_run(self, id: Any, name: str | None = None, tags: Any = None) -> None:
        self.run.name = name or self.run.name
        self.run.tags = tags


@pytest.fixture
def of_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The flow run of a profile, named by its parameters, and what the server is told of it."""

    def of_run(name: str, profile: str, *tags: str, beta: float | None = 0.1) -> Any:
        server = Server(name, *tags)
        monkeypatch.setattr(_pages, "get_client", lambda sync_client: nullcontext(server))
        monkeypatch.setattr(_pages, "flow_run", SimpleNamespace(id=str(server.run.id)))
        stage, runtime = SimpleNamespace(beta=beta), SimpleNamespace(service="mine")
        settings: Any = SimpleNamespace(profile=profile, stages={"train": stage}, named_runtime=runtime)
        return server.run, settings

    return of_run


def test_a_run_is_tagged_by_what_runs_and_named_by_its_beta_though_nobody_gave_it(of_run: Any) -> None:
    run, settings = of_run("demo", "demo", "nightly")
    tag_run(settings, "demo")
    tag_key("0123456789abcdef")
    assert run.name == "demo, beta 0.1"
    assert run.tags == ["beta:0.1", "key:01234567", "nightly", "profile:demo", "service:mine"]


@pytest.mark.parametrize(("shown", "given"), [("my own name", "demo"), ("demo, beta 0.2", "demo, beta 0.2")])
def test_a_name_that_somebody_chose_stays_and_no_beta_is_named_twice(of_run: Any, shown: str, given: str) -> None:
    run, settings = of_run(shown, "demo", beta=0.2)
    tag_run(settings, given)
    assert run.name == shown


def test_the_name_and_the_tags_of_a_run_hold_no_secret(monkeypatch: pytest.MonkeyPatch, of_run: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    given = SimpleNamespace(parameters={"profile": f"configs/{ACTING}.toml"})
    monkeypatch.setattr(_prefect, "flow_run", given)
    run, settings = of_run(run_name(), ACTING, ACTING)
    tag_run(settings, run_name())
    for text in (run_name(), run.name, *run.tags):
        assert SECRET not in text and "\x1b" not in text
    assert any(tag.startswith("profile:401 for ***") for tag in run.tags)


class Lost:
    """Stands in for a client of a server that is gone."""

    def api_healthcheck(self) -> Exception:
        return httpx.ConnectError("refused")


@pytest.fixture
def bare(story: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy story outside a flow run, whose server is gone."""
    monkeypatch.setattr(_logs, "get_run_logger", lambda: logging.getLogger("elsewhere"))
    monkeypatch.setattr(Line, "_client", Lost())
    monkeypatch.setattr(_line, "RETURN_SECONDS", -1.0)
    return story


def test_stages_that_prefect_cannot_reach_any_more_are_made_all_the_same(bare: Any) -> None:
    stages = bare.stages()
    settings = load(bare.profile, [], stages, {})
    with pytest.raises(ServerGoneError, match="all stages finished"), started(stages, settings, Selection()) as run:
        run.make("download")
        raise httpx.ConnectError("what Prefect raises between two tasks")
    assert bare.ran == [stage.name for stage in stages]
    record = latest(settings.runtime.artifacts)
    assert record is not None
    assert record.state == "completed"
    assert "the Prefect server stopped answering" in record.error


def test_a_stage_that_fails_while_the_server_is_gone_fails_the_run(bare: Any) -> None:
    def fail(ctx: Any) -> None:
        raise DataError("an empty file")

    bare.hooks["tokenize"] = fail
    settings = load(bare.profile, [], bare.stages(), {})
    with pytest.raises(DataError), started(bare.stages(), settings, Selection()) as run:
        run.make("download")
        run.make("tokenize")
    assert bare.ran == ["download", "tokenize"]
    record = latest(settings.runtime.artifacts)
    assert record is not None
    assert record.state == "failed"


def test_prefect_failing_to_tell_an_error_to_its_server_does_not_hide_the_error() -> None:
    lost = httpx.ConnectError("refused")
    lost.__context__ = DataError("the file is empty")
    record = logging.LogRecord("prefect.engine", 40, "", 1, "exited", (), (type(lost), lost, None))
    assert PlainErrors().filter(record)
    assert record.getMessage() == "DataError: the file is empty"


def test_the_loggers_of_prefect_have_the_filter() -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        assert [type(each) for each in logging.getLogger(name).filters].count(PlainErrors) == 1


def test_nothing_in_a_plan_breaks_its_table() -> None:
    decisions = [
        Decision("train", "run", "loss: a|b →\nc"),
        Decision("evaluate", "reuse", "nothing changed", "k", Path("artifacts/evaluate/k"), 3.0),
    ]
    lines = plan_table(decisions).splitlines()
    assert len(lines) == 4
    assert r"a\|b" in lines[2]
    assert "`artifacts/evaluate/k`" in lines[3]


def test_no_file_of_the_flows_bears_the_name_of_an_installed_package() -> None:
    folder = Path(flows.__file__).parent  # Prefect puts it first on the path
    stems = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    assert [stem for stem in stems if importlib.util.find_spec(stem)] == []
