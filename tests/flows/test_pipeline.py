import inspect
import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.handlers import APILogHandler
from prefect.utilities.callables import parameter_schema

from engine.errors import NumericsError, TransientError
from engine.stage import Context
from flows import _board, _pages, pipeline
from flows._server import FLOW, POOL, PORT
from flows.pipeline import StageName, dpo_pipeline
from tasks import STAGES

ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in STAGES]


def deployments() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def test_every_stage_is_a_task_of_the_flow_and_can_be_chosen() -> None:
    assert list(get_args(StageName)) == NAMES
    assert [getattr(pipeline, name).name for name in NAMES] == NAMES
    assert all(getattr(pipeline, name).retries > 0 for name in NAMES)


def test_every_parameter_has_a_default_and_a_help_text() -> None:
    schema = parameter_schema(dpo_pipeline.fn).model_dump()
    assert not schema.get("required")
    assert all(each.get("description") for each in schema["properties"].values()), schema["properties"]
    assert schema["properties"]["beta"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert schema["properties"]["seed"]["anyOf"][0] == {"exclusiveMaximum": 2**63, "minimum": 0, "type": "integer"}


def test_the_flow_touches_neither_files_nor_torch() -> None:
    source = inspect.getsource(pipeline)
    assert not any(word in source for word in ("torch", "open(", "Path", "read_", "write_"))


def test_the_deployments_are_the_three_that_are_promised() -> None:
    found = deployments()
    assert set(found) == {"default", "seed", "nightly"}
    for each in found.values():
        assert each["entrypoint"] == "flows/pipeline.py:dpo_pipeline"
        assert each["work_pool"]["name"] == POOL
        assert (ROOT / "configs" / f"{each['parameters']['profile']}.toml").is_file()
    assert found["nightly"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert dpo_pipeline.name == FLOW


def test_the_schedule_takes_its_state_from_the_server_and_no_deploy_changes_it() -> None:
    nightly = deployments()["nightly"]
    (schedule,) = nightly["schedules"]
    (step,) = nightly["build"]
    assert step == {"flows._server.nightly_state": {"id": "nightly"}}
    assert schedule["active"] == "{{ nightly.active }}"
    assert schedule["slug"]


def test_deployments_carry_no_path() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    assert "pull" not in yaml.safe_load(text)
    assert all("pull" not in each for each in deployments().values())


def test_prefect_toml_names_the_server_that_make_demo_starts() -> None:
    assert tomllib.loads((ROOT / "prefect.toml").read_text())["api"]["url"] == f"http://127.0.0.1:{PORT}/api"


def stages_of(state: State[Any]) -> dict[str, TaskRun]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=of_run(state))
    return {each.name: each for each in found}


def of_run(state: State[Any]) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))


def shown_of(state: State[Any]) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return {each.key: each.data for each in client.read_artifacts(flow_run_filter=of_run(state))}


def logs_of(state: State[Any]) -> list[str]:
    APILogHandler().flush()
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        return [each.message for each in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))]


def record_of(story: Any) -> dict[str, Any]:
    latest = max((story.root / "artifacts" / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    return dict(json.loads(latest.read_text()))


@pytest.mark.slow
def test_a_run_makes_every_stage_and_publishes_what_it_made(server: None, story: Any) -> None:
    state = story.run()
    assert state.is_completed()
    assert story.ran == NAMES
    stages = stages_of(state)
    assert {name: each.state_name for name, each in stages.items()} == dict.fromkeys(NAMES, "Made")
    shown = shown_of(state)
    assert set(shown) == {"dpo-run", *(f"dpo-{name}" for name in NAMES)}
    assert Path(state.message or "").is_file()
    assert record_of(story)["state"] == "completed"
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == "toy, beta 0.1"
    assert {"beta:0.1", f"profile:{story.profile}", f"key:{Path(stages['train'].state.message).name[:8]}"} < {*run.tags}
    last = [message for message in logs_of(state) if "?" in message or message.startswith("The whole report")]
    questions = [
        "Did it work?",
        "What changed since the last run?",
        "Which stage took the time?",
        "Where is the adapter?",
    ]
    assert [message[: message.find("?") + 1] for message in last] == [*questions, ""]


@pytest.mark.slow
def test_the_arrows_are_the_inputs_of_the_stages(server: None, story: Any) -> None:
    stages = stages_of(story.run())
    names = {each.id: name for name, each in stages.items()}
    for stage in STAGES:
        arrows = {names[each.id] for each in stages[stage.name].task_inputs["above"]}
        assert arrows == set(stage.inputs), stage.name


@pytest.mark.slow
def test_a_second_run_reuses_and_another_beta_reruns_what_depends_on_it(server: None, story: Any) -> None:
    story.run()
    story.ran.clear()
    again = story.run()
    assert story.ran == []
    stages = stages_of(again)
    assert {each.state_name for each in stages.values()} == {"Reused"}
    path = Path(stages["train"].state.message)
    assert (path / "manifest.json").is_file()
    assert f"dpo-{NAMES[0]}" in shown_of(again), "a reused stage is published too"

    story.run(beta=0.2)
    assert story.ran == ["train", "evaluate", "compare", "promote"]


@pytest.mark.slow
def test_one_stage_is_skipped_by_its_config_and_others_by_the_selection(server: None, story: Any) -> None:
    stages = stages_of(story.run(until="sft", overrides=["sft.policy=gpt"]))
    assert (stages["sft"].state_name, stages["sft"].state.message) == ("Skipped", "gpt is given")
    assert stages["train"].state_name == "Skipped"


@pytest.mark.slow
def test_a_plan_shows_what_would_run_and_runs_nothing(server: None, story: Any) -> None:
    state = story.run(plan_only=True)
    assert state.name == "Planned"
    assert story.ran == []
    assert "never made" in shown_of(state)["dpo-plan"]
    assert not (story.root / "artifacts").exists()


@pytest.mark.slow
def test_transient_trouble_is_tried_again(server: None, story: Any) -> None:
    def once(ctx: Context[Any]) -> None:
        if story.ran.count("download") == 1:
            raise TransientError("the Hub did not answer")

    story.hooks["download"] = once
    assert story.run().is_completed()
    assert story.ran[:2] == ["download", "download"]


@pytest.mark.slow
def test_a_failed_proof_is_not_tried_again_and_is_told_without_a_traceback(server: None, story: Any) -> None:
    def fail(ctx: Context[Any]) -> None:
        raise NumericsError("the margins are not zero", expected="ln 2", found="0.7", fix="make the reference anew")

    story.hooks["train"] = fail
    state = story.run()
    assert state.is_failed()
    assert "the margins are not zero" in (state.message or "")
    assert story.ran.count("train") == 1
    assert "evaluate" not in story.ran
    assert not any("Traceback" in message for message in logs_of(state))
    record = record_of(story)
    assert (record["state"], record["error"].splitlines()[0]) == ("failed", "the margins are not zero")


@pytest.mark.slow
def test_nothing_that_the_server_keeps_of_an_unforeseen_error_tells_a_secret(
    server: None, story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ctx: Context[Any]) -> None:
        raise ValueError("401 for s3cr3t-value-of-mine \x1b]0;owned\x07")

    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value-of-mine")
    story.hooks["tokenize"] = fail
    state = story.run()
    stage = stages_of(state)["tokenize"]
    kept = [state.message, stage.state.message, *logs_of(state), *map(str, shown_of(state).values())]
    assert "ValueError: 401 for ***" in (stage.state.message or "") and "401 for ***" in (state.message or "")
    assert sum("Traceback" in text for text in kept) == 1
    assert not any("s3cr3t" in text or "\x1b" in text for text in kept)


@pytest.mark.slow
def test_a_wrong_override_fails_before_any_stage_and_names_the_right_key(server: None, story: Any) -> None:
    state = story.run(overrides=["train.betta=0.2"])
    assert state.is_failed()
    assert "did you mean `train.beta`?" in (state.message or "")
    assert story.ran == []
    assert any("did you mean" in message for message in logs_of(state))


@pytest.mark.slow
def test_a_failure_to_publish_fails_no_stage(server: None, story: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(_pages, "create_markdown_artifact", refuse)
    monkeypatch.setattr(_board, "create_progress_artifact", refuse)
    state = story.run()
    assert state.is_completed()
    assert any("could not publish the report dpo-download" in message for message in logs_of(state))


@pytest.mark.slow
def test_what_the_stages_log_is_in_the_logs_of_the_run_once(server: None, story: Any) -> None:
    messages = logs_of(story.run())
    assert [messages.count(f"the log of {name}") for name in NAMES] == [1] * len(NAMES)
