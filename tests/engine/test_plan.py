import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.artifact import MANIFEST
from engine.errors import ConfigError, DataError, MissingInputError, StoreError
from engine.plan import Plan

ALL = ["download", "tokenize", "sft", "train", "evaluate"]


def prune(toy: Any, *names: str) -> None:
    """Leaves of these stages' artifacts nothing but their manifests."""
    for name in names:
        root = toy.root / ("data" if name == "download" else "artifacts")
        for folder in (root / name).iterdir():
            place = root / ".pruned" / name / folder.name
            place.mkdir(parents=True)
            shutil.move(folder / MANIFEST, place / MANIFEST)
            shutil.rmtree(folder)


def actions(toy: Any, *overrides: str, **selection: Any) -> dict[str, str]:
    return toy.plan(*overrides, **selection)


class TestManifestsThatOutliveTheirFiles:
    def test_an_ancestor_that_was_removed_is_not_rebuilt_while_nothing_has_to_read_it(self, toy):
        before = toy.run()
        prune(toy, "download", "tokenize")
        after = toy.run()
        assert toy.ran == []
        decision = after.decisions["tokenize"]
        assert (decision.action, decision.path, decision.key) == ("reuse", None, before.decisions["tokenize"].key)
        assert "only its manifest is kept" in decision.why
        assert decision.seconds == before.decisions["tokenize"].seconds
        assert after.decisions["evaluate"].path == before.decisions["evaluate"].path

    def test_all_above_what_was_asked_for_may_be_removed(self, toy):
        toy.run()
        prune(toy, *ALL[:-1])
        toy.run()
        assert toy.ran == []

    @pytest.mark.parametrize(
        ("selection", "pruned", "ran"),
        [
            ({}, ["evaluate"], ["evaluate"]),
            ({}, ["train", "evaluate"], ["train", "evaluate"]),
            ({"until": "train"}, ["train"], ["train"]),
            ({"until": "train"}, ["tokenize", "train"], ["tokenize", "train"]),
            ({"until": "train"}, ["sft"], []),
            ({"only": "train"}, ["train"], ["train"]),
            ({"since": "sft", "until": "train"}, ["train", "evaluate"], ["train"]),
            ({"only": "evaluate"}, ["train"], []),
        ],
    )
    def test_what_was_asked_for_is_made_again_without_force_where_only_its_manifest_is_kept(
        self, toy, selection, pruned, ran
    ):
        toy.run()
        prune(toy, *pruned)
        planned = toy.plan(**selection)
        assert {name for name in ALL if planned[name] == "run"} >= set(ran)
        pipeline = toy.run(**selection)
        assert toy.ran == ran
        if ran:
            assert pipeline.decisions[ran[-1]].why.endswith("its files are what this run is for")
            assert pipeline.artifacts[ran[-1]].file("out.txt").is_file()

    def test_what_only_a_skipped_stage_would_read_was_asked_for(self, toy):
        toy.stages[4] = dataclasses.replace(toy.stages[4], skip=lambda config, configs: "nothing to judge")
        toy.run()
        prune(toy, "train")
        toy.run()
        assert toy.ran == ["train"]

    def test_a_stage_that_has_to_run_brings_back_what_it_reads_and_no_more(self, toy):
        toy.run()
        prune(toy, "download", "tokenize", "sft", "train")
        assert actions(toy, "evaluate.labels.a=1") == dict.fromkeys(ALL, "run")
        toy.run("evaluate.labels.a=1")
        assert toy.ran == ALL
        toy.run()
        assert toy.ran == []

    def test_what_is_whole_between_them_spares_those_above_it(self, toy):
        toy.run()
        prune(toy, "download", "tokenize", "sft")
        pipeline = toy.run("evaluate.labels.a=1")
        assert toy.ran == ["evaluate"]
        assert [pipeline.decisions[name].path for name in ALL[:3]] == [None] * 3

    def test_the_reason_names_who_reads_it(self, toy):
        toy.run()
        prune(toy, "tokenize")
        plan = toy.pipeline("train.beta=0.2", network=False)
        plan.plan()
        assert plan.decisions["download"].action == "reuse"
        why = "only its manifest is kept, and train has to read its files (train.beta: 0.1 → 0.2)"
        assert plan.decisions["tokenize"].why == why
        toy.run("train.beta=0.2")
        assert toy.ran == ["tokenize", "train", "evaluate"]

    def test_what_is_not_selected_serves_with_its_manifest_or_is_missing(self, toy):
        toy.run()
        prune(toy, "download", "tokenize")
        toy.run(only="evaluate", force=True)
        assert toy.ran == ["evaluate"]
        with pytest.raises(MissingInputError, match="train has to read its files") as error:
            toy.run("train.beta=0.2", only="train")
        assert error.value.fix == "dpo run --profile toy --until train --set train.beta=0.2"
        toy.run("train.beta=0.2", until="train")
        assert toy.ran == ["download", "tokenize", "train"]

    def test_what_is_forced_needs_a_forced_run_to_bring_removed_files_back(self, toy):
        toy.run()
        prune(toy, "tokenize")
        with pytest.raises(MissingInputError) as error:
            toy.run(only="train", force=True)
        assert error.value.fix == "dpo run --profile toy --until train --force"

    def test_forcing_makes_what_was_removed_again(self, toy):
        toy.run()
        prune(toy, "tokenize")
        toy.run(only="tokenize", force=True)
        assert toy.ran == ["tokenize"]
        toy.run()
        assert toy.ran == []

    def test_a_manifest_that_was_damaged_is_no_manifest(self, toy):
        toy.run()
        prune(toy, "tokenize")
        (kept,) = (toy.root / "artifacts" / ".pruned" / "tokenize").glob("*/manifest.json")
        kept.write_text("{}")
        assert actions(toy)["tokenize"] == "run"

    def test_the_change_that_needs_removed_files_is_told_through_the_whole_chain(self, toy):
        toy.run()
        prune(toy, *ALL)
        plan = toy.pipeline("sft.steps=6", network=False)
        plan.plan()
        kept = "only its manifest is kept, and"
        because = f"{kept} sft has to read its files (sft.steps: 5 → 6)"
        assert plan.decisions["download"].why == f"{kept} tokenize has to read its files ({because})"
        assert plan.explain("sft").chain[-1].stage == "download"

    def test_a_change_is_told_from_the_manifest_that_was_kept(self, toy):
        toy.run()
        prune(toy, *ALL)
        plan = toy.pipeline("download.size=4", network=False)
        assert plan.plan()[0].why == "download.size: 3 → 4"

    def test_files_that_are_needed_against_all_planning_are_an_error_and_come_back_with_the_next_run(self, toy):
        toy.run()
        prune(toy, "tokenize")
        pipeline = toy.pipeline()
        for stage in toy.stages[:2]:
            pipeline.run(stage)
        shutil.rmtree(next((toy.root / "artifacts" / "sft").iterdir()))
        with pytest.raises(StoreError, match="only its manifest is kept") as error:
            pipeline.run(toy.stages[2])
        assert "run again" in error.value.fix
        toy.run()
        assert toy.ran == ["tokenize", "sft"]

    def test_nothing_but_the_files_of_the_kept_is_heard_of_by_who_listens(self, toy):
        toy.run()
        prune(toy, "tokenize")
        pipeline = toy.pipeline()
        heard: dict[str, Any] = {}
        pipeline.listener.finished = lambda decision, artifact: heard.update({decision.stage: artifact})  # type: ignore[method-assign]
        for stage in toy.stages:
            pipeline.run(stage)
        assert heard["tokenize"] is None
        assert heard["sft"] is not None


def raising_interrupt(ctx: Any) -> None:
    raise KeyboardInterrupt


class TestExplaining:
    def explain(self, toy: Any, name: str, *overrides: str) -> Any:
        plan = Plan(toy.stages, toy.settings(*overrides))
        plan.plan()
        return plan.explain(name)

    def test_a_stage_that_waits_is_explained_by_the_first_cause_with_every_difference(self, toy):
        toy.run()
        long = "x" * 200
        found = self.explain(toy, "evaluate", "download.size=1", f"tokenize.template={long}")
        assert [each.stage for each in found.chain] == ["evaluate", "train", "tokenize", "download"]
        assert [(each.name, each.old, each.new) for each in found.nearest.changes] == [("config.size", 3, 1)]
        found = self.explain(toy, "train", f"tokenize.template={long}", "tokenize.words=1")
        assert [(each.name, each.new) for each in found.nearest.changes] == [
            ("config.template", long),
            ("config.words", 1),
        ]

    def test_what_is_reused_is_compared_with_itself(self, toy):
        key = toy.run().decisions["train"].key
        found = self.explain(toy, "train")
        assert (found.nearest.made.key, found.nearest.changes, found.nearest.kind) == (key, [], "sealed")

    def test_what_was_never_made_or_is_skipped_is_near_to_nothing(self, toy):
        assert self.explain(toy, "download").nearest is None
        found = self.explain(toy, "sft", "model.policy=a/b")
        assert (found.nearest, [each.action for each in found.chain]) == (None, ["skip"])

    def test_a_key_that_cannot_be_told_ends_the_chain(self, toy):
        toy.run(until="download")
        found = self.explain(toy, "sft", "model.name=owner/name")
        assert [each.stage for each in found.chain] == ["sft", "tokenize"]
        assert found.nearest is None


class TestAttempts:
    @pytest.fixture
    def interrupted(self, toy: Any) -> Any:
        """The toys after a training under beta 0.1 that was interrupted and left something to go on from."""

        toy.hooks["train"] = raising_interrupt
        with pytest.raises(KeyboardInterrupt):
            toy.run()
        toy.hooks.clear()
        return toy

    def test_an_attempt_under_another_config_is_told_of_and_the_stage_starts_anew(self, interrupted):
        pipeline = interrupted.run("train.beta=0.2")
        decision = pipeline.decisions["train"]
        assert decision.action == "run"
        assert decision.why.startswith("train.beta: 0.1 → 0.2 (an interrupted attempt from before that is left at ")
        left = Path(decision.why.partition("left at ")[2].partition(";")[0])
        assert (left / "out.txt").read_text() == "adapter 0.1"
        assert interrupted.plan()["train"] == "resume"

    def test_what_bears_no_identity_goes_on_with_the_attempt(self, interrupted):
        plan = interrupted.plan("runtime.log_every_steps=3", "runtime.checkpoint_every_seconds=1")
        assert plan["train"] == "resume"
        assert interrupted.run("runtime.log_every_steps=3").decisions["train"].action == "resume"

    def test_a_sealed_artifact_that_is_as_near_comes_before_an_attempt(self, interrupted):
        interrupted.run("train.beta=0.3")
        pipeline = interrupted.run("train.beta=0.2")
        assert pipeline.decisions["train"].why == "train.beta: 0.3 → 0.2"

    def interrupted_by_force(self, toy: Any) -> None:
        toy.hooks["train"] = raising_interrupt
        with pytest.raises(KeyboardInterrupt):
            toy.run(only="train", force=True)
        toy.hooks.clear()

    def test_a_forced_attempt_that_was_interrupted_is_gone_on_with_when_it_is_forced_again(self, toy):
        toy.run()
        self.interrupted_by_force(toy)
        assert toy.plan()["train"] == "reuse"
        seen: dict[str, Any] = {}
        toy.hooks["train"] = lambda ctx: seen.update(fresh=ctx.fresh, note=(ctx.work / ".attempt.json").read_text())
        decision = toy.run(only="train", force=True).decisions["train"]
        assert (decision.action, decision.why) == ("resume", "an earlier forced attempt was interrupted")
        assert seen["fresh"] is False
        assert '"forced": true' in seen["note"]  # should it be interrupted once more
        assert toy.run(only="train", force=True).decisions["train"].why == "forced"

    def test_an_attempt_that_was_not_forced_is_emptied_by_force(self, interrupted):
        plan = interrupted.pipeline(network=False, only="train", force=True)
        plan.plan()
        assert (plan.decisions["train"].action, plan.decisions["train"].why) == ("run", "forced")
        found: list[str] = []
        train = interrupted.stages[3]

        def run(ctx: Any) -> None:
            found.extend(each.name for each in ctx.work.iterdir())
            train.run(ctx)

        interrupted.stages[3] = dataclasses.replace(train, run=run)
        interrupted.run(only="train", force=True)
        assert found == [".attempt.json"]

    def test_an_attempt_stays_forced_while_others_go_on_with_it(self, toy):
        toy.run(until="sft")
        self.interrupted_by_force(toy)
        toy.hooks["train"] = raising_interrupt
        with pytest.raises(KeyboardInterrupt):
            toy.run(until="train")
        toy.hooks.clear()
        assert toy.plan(only="train", force=True)["train"] == "resume"

    def test_a_forced_attempt_that_another_run_is_at_is_not_gone_on_with_and_once_it_is_sealed_all_begins_anew(
        self, toy
    ):
        toy.run()
        self.interrupted_by_force(toy)
        pipeline = toy.pipeline(only="train", force=True)
        pipeline.plan()
        planned = pipeline.decisions["train"]
        with pipeline._stores["artifacts"].locked("train", planned.key, 0):
            assert pipeline.decide(toy.stages[3]).why.startswith("being made right now by ")
        toy.run(only="train", force=True)
        fresh: list[bool] = []
        toy.hooks["train"] = lambda ctx: fresh.append(ctx.fresh)
        told = pipeline._make(toy.stages[3], planned)
        assert (told.action, told.why, fresh) == ("run", "forced", [True])

    def test_an_attempt_that_left_nothing_to_go_on_from_is_not_told_of(self, interrupted):
        interrupted.stages[3] = dataclasses.replace(interrupted.stages[3], resumes=lambda work: False)
        assert interrupted.run("train.beta=0.2").decisions["train"].why == "never made"


def test_a_source_that_the_system_refuses_is_an_error_in_words(toy):
    def sources(config: Any, sources: Any) -> dict[str, Any]:
        raise PermissionError(13, "Permission denied", "x.csv")

    toy.stages[0] = dataclasses.replace(toy.stages[0], sources=sources)
    with pytest.raises(DataError, match="Permission denied"):
        toy.plan()


def test_a_forced_stage_is_told_so_and_another_is_not(toy):
    fresh: dict[str, bool] = {}
    for name in ALL:
        toy.hooks[name] = lambda ctx: fresh.update({ctx.stage: ctx.fresh})
    toy.run()
    assert not any(fresh.values())
    toy.run(only="train", force=True)
    assert fresh["train"]


class TestConfigsThatAreBorrowed:
    """`train` borrows the config of `sft`, which skips itself where a policy is given."""

    GIVEN = "model.policy=given"

    @pytest.fixture
    def lent(self, toy: Any) -> Any:
        (toy.root / "given").mkdir()
        place = next(at for at, stage in enumerate(toy.stages) if stage.name == "train")
        toy.stages[place] = dataclasses.replace(toy.stages[place], borrows=("sft",))
        return toy

    def test_where_the_lender_is_not_skipped_no_key_changes(self, toy):
        plain = toy.run()
        before = {name: made.manifest["payload"] for name, made in plain.artifacts.items()}
        place = next(at for at, stage in enumerate(toy.stages) if stage.name == "train")
        toy.stages[place] = dataclasses.replace(toy.stages[place], borrows=("sft",))
        after = toy.run()
        assert toy.ran == []
        assert {name: made.manifest["payload"] for name, made in after.artifacts.items()} == before
        assert "borrowed" not in before["train"]

    def test_where_it_is_skipped_its_config_counts_and_is_seen_by_who_borrows_it(self, lent):
        seen = []
        lent.hooks["train"] = lambda ctx: seen.append((sorted(ctx.inputs), dict(ctx.borrowed)))
        made = lent.run(self.GIVEN).artifacts["train"]
        identity = made.manifest["payload"]["borrowed"]["sft"]
        assert identity == lent.settings(self.GIVEN).stages["sft"].identity()
        assert seen == [(["tokenize"], {"sft": identity})]
        assert lent.plan(self.GIVEN)["train"] == "reuse"
        assert lent.plan(self.GIVEN, "sft.steps=7")["train"] == "run"

    def test_where_it_is_not_skipped_nothing_is_lent(self, lent):
        seen = []
        lent.hooks["train"] = lambda ctx: seen.append(dict(ctx.borrowed))
        lent.run()
        assert seen == [{}]

    def test_configs_that_do_not_go_together_are_refused_before_anything_is_decided(self, toy):
        def refuse(config, configs):
            raise ConfigError(f"beta is {configs['train'].beta}")

        toy.stages[2] = dataclasses.replace(toy.stages[2], check=refuse)
        with pytest.raises(ConfigError, match="beta is"):
            Plan(toy.stages, toy.settings())

    def test_a_stage_sees_the_configs_of_all_when_it_says_whether_it_is_skipped(self, toy):
        seen = []
        skip = lambda config, configs: seen.append((config, configs["train"].beta))  # noqa: E731 - None: it is not
        toy.stages[0] = dataclasses.replace(toy.stages[0], skip=skip)
        toy.plan("train.beta=0.7")
        assert (toy.settings().stages["download"], 0.7) in seen
