import dataclasses
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.artifact import Artifact
from engine.errors import ConfigError, DataError, MissingInputError, StoreError, TransientError
from engine.stage import Decision, Listener

ALL = ["download", "tokenize", "sft", "train", "evaluate"]


def damage(path: Path) -> None:
    """Changes a byte without changing the size."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(7, 7))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def raising(error: BaseException) -> Callable[[Any], None]:
    def hook(ctx: Any) -> None:
        raise error

    return hook


def test_a_first_run_makes_everything_and_a_second_reuses_everything(toy):
    first = toy.run()
    assert toy.ran == ALL
    assert {decision.why for decision in first.decisions.values()} == {"never made"}
    second = toy.run()
    assert toy.ran == []
    assert {decision.action for decision in second.decisions.values()} == {"reuse"}
    assert second.decisions["train"].path == first.decisions["train"].path
    assert second.decisions["train"].seconds == first.decisions["train"].seconds


def test_what_came_from_outside_is_stored_apart_from_what_was_made(toy):
    pipeline = toy.run()
    assert pipeline.artifacts["download"].path.parent == toy.root / "data" / "download"
    assert pipeline.artifacts["train"].path.parent == toy.root / "artifacts" / "train"


def test_a_changed_beta_reruns_train_and_evaluate_only_and_says_why(toy):
    toy.run()
    plan = toy.pipeline("train.beta=0.2", network=False)
    plan.plan()
    assert toy.run("train.beta=0.2").decisions["train"].why == plan.decisions["train"].why == "train.beta: 0.1 → 0.2"
    assert toy.ran == ["train", "evaluate"]
    assert plan.decisions["evaluate"].why == "its input train will be made first"
    assert plan.decisions["evaluate"].key is None


def test_going_back_to_an_earlier_value_reuses_what_was_made_then(toy):
    toy.run()
    toy.run("train.beta=0.2")
    toy.run()
    assert toy.ran == []


def test_where_and_how_fast_is_no_reason_to_run_again(toy):
    toy.run()
    toy.run("runtime.micro_batch_tokens=1", "runtime.device=cpu")
    assert toy.ran == []


def test_what_of_the_runtime_a_config_binds_is_part_of_the_key_and_of_no_other(toy):
    toy.run()
    toy.stages[3] = dataclasses.replace(
        toy.stages[3],
        binds=lambda config, runtime, _: (
            {"micro_batch_tokens": runtime.micro_batch_tokens} if config.beta > 0.1 else {}
        ),
    )
    assert toy.plan("runtime.micro_batch_tokens=1")["train"] == "reuse"
    toy.run("train.beta=0.2")
    again = toy.run("train.beta=0.2", "runtime.micro_batch_tokens=4")
    assert toy.ran == ["train"]
    assert again.decisions["train"].why == "train.micro_batch_tokens: 4096 → 4"
    toy.run("train.beta=0.2", "runtime.score_batch_tokens=4")
    assert toy.ran == []


def test_what_a_stage_looks_up_by_its_inputs_is_part_of_its_key(toy):
    found = {"place": "here"}
    toy.stages[3] = dataclasses.replace(
        toy.stages[3], binds=lambda config, runtime, inputs: dict.fromkeys(inputs, found["place"])
    )
    toy.run()
    toy.run()
    assert toy.ran == []
    found["place"] = "there"
    toy.run()
    assert toy.ran[0] == "train"


def test_what_follows_from_an_artifact_is_done_whenever_it_is_made_or_reused(toy):
    applied = []
    toy.stages[3] = dataclasses.replace(
        toy.stages[3], apply=lambda config, artifact, runtime: applied.append((artifact.path, runtime.artifacts))
    )
    made = toy.run().artifacts["train"].path
    toy.run()
    assert applied == [(made, toy.root / "artifacts")] * 2
    toy.run(until="tokenize")
    toy.plan()
    assert len(applied) == 2


def test_an_input_made_anew_with_the_same_content_reruns_nothing_below(toy):
    toy.run()
    toy.run("download.size=9")
    assert toy.ran == ["download", "tokenize"]


def test_a_log_that_differs_is_no_other_content(toy):
    toy.run()
    toy.hooks["train"] = lambda ctx: (ctx.work / "logs" / "log.txt").write_text("another time")
    toy.run(only="train", force=True)
    toy.run()
    assert toy.ran == []


def test_a_source_with_other_content_reruns_its_stage_and_the_same_content_elsewhere_does_not(toy, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.csv").write_text("1")
    toy.run(f"download.files={tmp_path / 'a' / 'x.csv'}")
    toy.run(f"download.files={tmp_path / 'b' / 'x.csv'}")
    assert toy.ran == []
    (tmp_path / "b" / "x.csv").write_text("22")
    pipeline = toy.run(f"download.files={tmp_path / 'b' / 'x.csv'}")
    assert toy.ran == ["download"]
    assert pipeline.decisions["download"].why == "files has other content"


def test_a_stage_that_a_config_makes_needless_is_skipped_and_is_no_input(toy):
    pipeline = toy.run("model.policy=some/policy")
    assert toy.ran == ["download", "tokenize", "train", "evaluate"]
    assert pipeline.decisions["sft"] == Decision("sft", "skip", "a policy is given")
    assert set(pipeline.artifacts["train"].manifest["payload"]["inputs"]) == {"tokenize"}


def test_an_input_that_a_config_does_not_need_is_no_reason_to_run(toy):
    toy.stages[3] = dataclasses.replace(toy.stages[3], needs=lambda config: ("tokenize",))
    toy.run(until="tokenize")
    pipeline = toy.run(only="train")
    assert toy.ran == ["train"]
    assert set(pipeline.artifacts["train"].manifest["payload"]["inputs"]) == {"tokenize"}
    toy.run("sft.steps=9")
    assert toy.ran == ["sft", "evaluate"]


def test_the_manifest_keeps_what_the_key_was_made_of_and_the_numbers(toy):
    manifest = toy.run().artifacts["train"].manifest
    assert manifest["payload"]["config"]["beta"] == 0.1
    assert manifest["metrics"]["loss"] == 0.25
    assert manifest["profile"] == "toy"
    assert manifest["seconds"] >= 0
    assert "python" in manifest["environment"]
    json.dumps(manifest)


class TestSelecting:
    def test_only_runs_one_stage_and_takes_its_inputs_as_they_are(self, toy):
        toy.run()
        pipeline = toy.run("train.beta=0.2", only="train")
        assert toy.ran == ["train"]
        assert pipeline.decisions["evaluate"] == Decision("evaluate", "skip", "not selected")
        assert pipeline.decisions["tokenize"].action == "reuse"

    def test_from_runs_a_stage_and_those_below(self, toy):
        toy.run()
        toy.run(since="train", force=True)
        assert toy.ran == ["train", "evaluate"]

    def test_until_runs_a_stage_and_those_above(self, toy):
        toy.run(until="tokenize")
        assert toy.ran == ["download", "tokenize"]
        toy.run()
        assert toy.ran == ["sft", "train", "evaluate"]

    @pytest.mark.parametrize("act", ["plan", "run"])
    def test_an_input_that_is_missing_is_an_error_with_the_command_that_makes_it(self, toy, act):
        toy.run(until="tokenize")
        with pytest.raises(MissingInputError) as error:
            getattr(toy, act)("train.beta=0.2", only="train")
        assert error.value.problem == "train needs the artifact of sft, and it is not there"
        assert error.value.found == "never made"
        assert error.value.fix == "dpo run --profile toy --until sft --set train.beta=0.2"

    def test_an_input_whose_own_config_changed_is_missing_and_the_change_is_named(self, toy):
        toy.run()
        with pytest.raises(MissingInputError) as error:
            toy.run("sft.steps=6", since="train")
        assert error.value.found == "sft.steps: 5 → 6"

    def test_an_input_that_is_broken_is_missing(self, toy):
        damage(toy.run().artifacts["sft"].path / "out.txt")
        with pytest.raises(MissingInputError) as error:
            toy.run(only="train")
        assert "broken" in error.value.found
        assert toy.ran == []
        toy.run(until="sft")
        assert toy.ran == ["sft"]


class TestForcing:
    def test_force_makes_the_selected_stages_again_under_the_same_key(self, toy):
        before = toy.run()
        toy.hooks["train"] = lambda ctx: (ctx.work / "out.txt").write_text("another adapter")
        after = toy.run(only="train", force=True)
        assert toy.ran == ["train"]
        assert after.decisions["train"].why == "forced"
        assert after.decisions["train"].key == before.decisions["train"].key
        assert after.artifacts["train"].file("out.txt").read_text() == "another adapter"

    def test_the_plan_does_not_take_the_old_content_of_what_is_forced_for_granted(self, toy):
        made = toy.run()
        plan = toy.pipeline(network=False, since="sft", force=True)
        plan.plan()
        assert plan.decisions["sft"].key == made.decisions["sft"].key
        assert plan.decisions["sft"].seconds is not None
        assert "sft" not in plan.artifacts
        assert plan.decisions["train"] == Decision("train", "run", "its input sft will be made first")
        assert plan.decisions["evaluate"].why == "its input train will be made first"

    def test_force_starts_afresh_and_says_never_made_where_nothing_was(self, toy):
        def leave_something_and_fail(ctx: Any) -> None:
            (ctx.work / "left.txt").write_text("left")
            raise DataError("bad")

        toy.hooks["download"] = leave_something_and_fail
        with pytest.raises(DataError):
            toy.run()
        toy.hooks["download"] = lambda ctx: toy.ran.extend(path.name for path in ctx.work.iterdir())
        pipeline = toy.run(only="download", force=True)
        assert sorted(toy.ran) == [".attempt.json", "download", "out.txt"]
        assert pipeline.decisions["download"].why == "never made"

    def test_the_old_artifact_stays_when_the_forced_attempt_fails(self, toy):
        toy.run()
        toy.hooks["train"] = raising(DataError("bad"))
        with pytest.raises(DataError):
            toy.run(only="train", force=True)
        toy.hooks.clear()
        toy.run()
        assert toy.ran == []


class TestTrouble:
    def test_a_stage_that_was_interrupted_goes_on_with_what_it_left(self, toy):
        toy.hooks["train"] = raising(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            toy.run()
        assert toy.plan()["train"] == "resume"
        found: list[str] = []
        toy.hooks["train"] = lambda ctx: found.extend(sorted(path.name for path in ctx.work.iterdir()))
        pipeline = toy.run()
        assert (toy.ran, found) == (["train", "evaluate"], [".attempt.json", "logs", "out.txt"])
        assert pipeline.decisions["train"].action == "resume"
        assert toy.plan()["train"] == "reuse"

    @pytest.mark.parametrize("name", ["out.txt", "manifest.json"])
    def test_a_broken_artifact_goes_to_quarantine_and_is_made_again(self, toy, name, caplog):
        damage(toy.run().artifacts["train"].path / name)
        plan = toy.pipeline(network=False)
        plan.plan()
        assert plan.decisions["train"].action == "run"
        assert plan.decisions["train"].why.startswith("its artifact is broken: ")
        with caplog.at_level(logging.WARNING, "dpo"):
            pipeline = toy.run()
        assert toy.ran == ["train"]
        assert pipeline.decisions["train"].why == plan.decisions["train"].why
        assert len(list((toy.root / "artifacts" / ".quarantine").iterdir())) == 1
        assert "moved to" in caplog.text

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied", "/x/y")])
    def test_a_full_disk_or_a_refusal_inside_a_stage_says_what_to_do(self, toy, error):
        toy.hooks["train"] = raising(error)
        with pytest.raises(StoreError) as found:
            toy.run()
        assert "finished stages are kept" in found.value.fix
        assert (error.filename or ".work") in found.value.where

    @pytest.mark.parametrize("error", [ConnectionError("reset"), ValueError("a bug"), TransientError("later")])
    def test_other_errors_of_a_stage_come_through_as_they_are(self, toy, error):
        toy.hooks["train"] = raising(error)
        with pytest.raises(type(error)) as found:
            toy.run()
        assert found.value is error

    @pytest.mark.parametrize("gone", [False, True])
    def test_an_input_that_is_swapped_while_a_stage_reads_it_voids_the_work_and_nothing_is_sealed(self, toy, gone):
        def swap(ctx: Any) -> None:
            if gone:
                shutil.rmtree(ctx.inputs["sft"].path)
                return
            toy.hooks = {"sft": lambda other: (other.work / "out.txt").write_text("another policy")}
            other = toy.pipeline(only="sft", force=True)
            for stage in toy.stages[:3]:
                other.run(stage)

        toy.run(until="sft")
        pipeline = toy.pipeline(until="train")
        for stage in toy.stages[:3]:
            pipeline.run(stage)
        toy.hooks["train"] = swap
        with pytest.raises(TransientError, match=f"the input sft {'went' if gone else 'was made anew'}") as error:
            pipeline.run(toy.stages[3])
        assert error.value.fix == "run again"
        assert not list((toy.root / "artifacts" / "train").glob("*"))
        assert [list(folder.iterdir()) for folder in (toy.root / "artifacts" / ".work").iterdir()] == [[]]
        toy.hooks.clear()
        if not gone:  # as Prefect does it
            made, sft = pipeline.run(toy.stages[3]), pipeline.artifacts["sft"]
            inputs = pipeline.artifacts["train"].manifest["payload"]["inputs"]
            assert inputs["sft"] == Artifact("sft", sft.key, sft.path).digest
            assert made.action == "run"
        assert set(toy.run().decisions) == set(ALL)
        assert toy.plan()["train"] == "reuse"

    def test_an_input_made_anew_with_the_same_content_meanwhile_voids_nothing(self, toy):
        def again(ctx: Any) -> None:
            toy.hooks.clear()
            toy.run(only="sft", force=True)

        toy.run(until="sft")
        toy.hooks["train"] = again
        assert toy.run(until="train").decisions["train"].action == "run"

    def test_a_file_in_the_place_of_a_stages_folder_is_an_error_before_the_stage_works(self, toy):
        toy.run(until="sft")
        (toy.root / "artifacts" / "train").write_text("mine")
        with pytest.raises(StoreError, match="no folder"):
            toy.run()
        assert toy.ran == []

    def test_a_manifest_that_cannot_be_read_is_told_on_one_line(self, toy):
        (toy.run().artifacts["train"].path / "manifest.json").write_text("{")
        plan = toy.pipeline(network=False)
        plan.plan()
        assert plan.decisions["train"].why.startswith("its artifact is broken: a manifest cannot be read: ")
        assert "\n" not in plan.decisions["train"].why

    def test_a_failed_stage_leaves_no_artifact_and_keeps_those_above(self, toy):
        toy.hooks["train"] = raising(DataError("bad"))
        with pytest.raises(DataError):
            toy.run()
        assert not list((toy.root / "artifacts" / "train").glob("*"))
        toy.hooks.clear()
        toy.run()
        assert toy.ran == ["train", "evaluate"]

    def test_what_another_run_makes_in_the_meantime_is_reused(self, toy):
        toy.run(until="sft")
        pipeline = toy.pipeline()
        for stage in toy.stages[:3]:
            pipeline.run(stage)
        train = toy.stages[3]
        decision = pipeline.decide(train)
        toy.run(only="train")
        toy.ran.clear()
        assert pipeline._make(train, decision).why == "another run made it meanwhile"
        assert toy.ran == []

    def test_what_was_waited_for_is_reused_and_whoever_made_it_is_named(self, toy, caplog):
        caplog.set_level(logging.INFO, "dpo")
        toy.run(until="sft")
        one, other = toy.pipeline(), toy.pipeline("runtime.lock_wait_seconds=60")
        for stage in toy.stages[:3]:
            one.run(stage)
            other.run(stage)
        waits = threading.Thread(target=lambda: other.run(toy.stages[3]))
        toy.hooks["train"] = lambda ctx: (waits.start(), wait_for(lambda: "waiting up to" in caplog.text))
        toy.ran.clear()
        one.run(toy.stages[3])
        waits.join()
        assert toy.ran == ["train"]
        why = other.decisions["train"].why
        assert why.startswith(f"another run made it meanwhile: process {os.getpid()} of ")
        assert "it is reused" in caplog.text

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("bad")])
    def test_a_stage_that_left_nothing_to_go_on_from_runs_and_does_not_resume(self, toy, error):
        toy.hooks["sft"] = raising(error)
        with pytest.raises(type(error)):
            toy.run()
        pipeline = toy.pipeline()
        pipeline.plan()
        assert pipeline._stores["artifacts"].work_folder("sft", pipeline.decisions["sft"].key).is_dir()
        assert (pipeline.decisions["sft"].action, pipeline.decisions["sft"].why) == ("run", "never made")

    def test_a_stage_that_another_run_is_making_is_said_to_be_and_does_not_resume(self, toy):
        toy.hooks["train"] = raising(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            toy.run()
        pipeline = toy.pipeline()
        key = pipeline.plan()[3].key
        assert pipeline.decisions["train"].action == "resume"
        with pipeline._stores["artifacts"].locked("train", key, 0):
            decision = pipeline.decide(toy.stages[3])
        assert decision.action == "run"
        assert decision.why.startswith(f"being made right now by process {os.getpid()} of ")
        toy.hooks.clear()
        told = pipeline._make(toy.stages[3], decision)  # the other one is gone and has left what it did
        assert (told.action, told.why) == ("resume", "an earlier attempt was interrupted")

    def test_a_stage_that_another_run_is_making_is_transient_trouble(self, toy):
        pipeline = toy.pipeline()
        key = pipeline.decide(toy.stages[0]).key
        with (
            pipeline._stores["data"].locked("download", key, 0),
            pytest.raises(TransientError, match="another run is making download"),
        ):
            pipeline.run(toy.stages[0])

    def test_an_artifact_without_its_time_is_reused_with_unknown_seconds(self, toy, monkeypatch):
        toy.run()
        monkeypatch.setattr("engine.store.Artifact.manifest", {"seconds": None, "digest": "d", "files": {}})
        assert toy.pipeline().decide(toy.stages[0]).seconds is None


class TestLocating:
    @pytest.fixture
    def judged(self, toy) -> Any:
        """The toys, the last of which reads the files it finds under the name `prompts.*`."""

        def sources(config: Any, sources: Any) -> dict[str, Any]:
            asked.append("prompts")
            return {"prompts": sources.file_contents(str(toy.root / "prompts.*"))}

        asked: list[str] = []
        toy.stages[4] = dataclasses.replace(toy.stages[4], sources=sources)
        toy.asked = asked
        return toy

    def test_a_location_that_is_wrong_fails_before_anything_is_made(self, judged):
        with pytest.raises(ConfigError, match="no file matches"):
            judged.run()
        assert judged.ran == []
        with pytest.raises(ConfigError, match="no file matches"):
            judged.plan()

    def test_a_location_of_a_stage_that_does_not_run_is_not_looked_at(self, judged):
        judged.run(until="train")
        assert (judged.ran, judged.asked) == (ALL[:4], [])

    def test_what_the_hub_does_not_tell_now_is_asked_again_when_it_is_needed(self, toy):
        def sources(config: Any, sources: Any) -> dict[str, Any]:
            if not toy.ran:
                raise TransientError("the Hub did not answer")
            return {}

        toy.stages[4] = dataclasses.replace(toy.stages[4], sources=sources)
        toy.run()
        assert toy.ran == ALL


class TestOffline:
    def test_a_revision_that_was_never_resolved_leaves_the_key_unknown(self, toy):
        plan = toy.pipeline("model.name=owner/name", network=False)
        assert [decision.action for decision in plan.plan()] == ["run"] * 5
        toy.run(until="download")
        plan = toy.pipeline("model.name=owner/name", network=False)
        plan.plan()
        assert plan.decisions["tokenize"] == Decision(
            "tokenize", "run", "owner/name@main was never resolved to a commit"
        )
        with pytest.raises(StoreError, match="has no key"):
            plan.run(toy.stages[1])

    def test_an_input_whose_source_was_never_resolved_is_missing(self, toy):
        toy.run(until="download")
        with pytest.raises(MissingInputError) as error:
            toy.plan("model.name=owner/name", only="sft")
        assert error.value.found == "owner/name@main was never resolved to a commit"

    def test_a_stage_that_does_not_run_resolves_nothing_anew(self, toy, monkeypatch):
        asked: list[str] = []
        commits = iter("ab")

        def ask(repository: str, revision: str, kind: str) -> str:
            asked.append(repository)
            return next(commits) * 40

        monkeypatch.setattr("engine.sources._ask_hub", ask)
        toy.run("model.name=owner/name")
        toy.run("model.name=owner/name", "train.beta=0.2", only="train")
        assert (asked, toy.ran) == (["owner/name"], ["train"])
        toy.run("model.name=owner/name")
        assert toy.ran == ["tokenize"]


class TestTelling:
    def test_a_plan_says_what_a_run_then_does(self, toy):
        damage(toy.run().artifacts["evaluate"].path / "out.txt")
        for overrides in ([], ["download.size=1"], ["train.beta=0.3"], ["model.policy=a/b"], ["evaluate.labels.a=1"]):
            planned = toy.plan(*overrides)
            done = {name: decision.action for name, decision in toy.run(*overrides).decisions.items()}
            surely = {name: action for name, action in planned.items() if action != "run"}
            assert surely == {name: done[name] for name in surely}
            assert [name for name in ALL if done[name] == "run"] == toy.ran

    def test_a_plan_changes_nothing(self, toy):
        toy.run(until="sft")
        before = sorted(path for path in toy.root.rglob("*") if path.name != ".hashes.json")
        toy.plan("train.beta=0.2")
        assert sorted(path for path in toy.root.rglob("*") if path.name != ".hashes.json") == before

    def test_the_listener_hears_what_starts_how_far_it_is_and_what_became_of_it(self, toy):
        heard: list[tuple[object, ...]] = []

        class Heard(Listener):
            def started(self, decision):
                heard.append(("started", decision.stage))

            def progressed(self, stage, done, total, numbers):
                heard.append(("progressed", stage, done, total, dict(numbers)))

            def finished(self, decision, artifact):
                heard.append(("finished", decision.stage, decision.action, artifact is not None))

        pipeline = toy.pipeline("model.policy=a/b", listener=Heard())
        for stage in (toy.stages[0], toy.stages[0]):
            pipeline.run(stage)
        pipeline.run(toy.stages[2])
        assert heard == [
            ("started", "download"),
            ("progressed", "download", 1, 2, {"loss": 0.5}),
            ("finished", "download", "run", True),
            ("finished", "download", "reuse", True),
            ("finished", "sft", "skip", False),
        ]

    def test_what_a_plan_found_does_not_outlive_what_a_run_finds(self, toy):
        toy.run()
        pipeline = toy.pipeline()
        pipeline.plan()
        assert "evaluate" in pipeline.artifacts
        damage(pipeline.artifacts["evaluate"].path / "out.txt")
        pipeline.plan()
        assert "evaluate" not in pipeline.artifacts


def test_a_stage_is_given_the_name_of_the_profiles_service_wherever_it_meets_the_runtime(toy):
    met: list[str] = []
    train = next(stage for stage in toy.stages if stage.name == "train")
    toy.hooks["train"] = lambda ctx: met.append(f"run {ctx.runtime.service}")
    toy.stages[toy.stages.index(train)] = dataclasses.replace(
        train,
        binds=lambda config, runtime, inputs: {"service": runtime.service},
        apply=lambda config, artifact, runtime: met.append(f"apply {runtime.service}"),
    )
    made = toy.run().artifacts["train"]
    assert met == ["run toy", "apply toy"]
    assert made.manifest["payload"]["runtime"] == {"service": "toy"}
