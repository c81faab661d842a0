import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config import Runtime, Strict
from engine.errors import MissingInputError, StoreError
from engine.promotion.service import Service
from engine.promotion.versions import candidate_of
from engine.runs import RunRecord
from engine.selection import Selection
from engine.sources import ModelSource
from engine.stage import Context, Stage
from flows._promotion import put_in_service, show_promoted, take_back


class Promote(Strict):
    model: ModelSource = ModelSource()
    verdict: str = "promote"


def opponent(config: Promote, runtime: Runtime, inputs: Any) -> dict[str, Any]:
    return {"in_service": Service.of(runtime).incumbent_of(candidate_of(inputs, {}))}


def judge(ctx: Context[Promote]) -> None:
    against = opponent(ctx.config, ctx.runtime, ctx.inputs)["in_service"]
    rules = [
        {"name": "one", "outcome": "passed", "words": "is good"},
        {"name": "two", "outcome": "not measured", "words": "has no `x`"},
        {"name": "three", "outcome": "failed", "words": "refuses 62.0% of normal requests; at most 10.0% is allowed"},
    ]
    rules = rules if ctx.config.verdict == "keep" else rules[:1]
    (ctx.work / "verdict.json").write_text(json.dumps({"verdict": ctx.config.verdict, "rules": rules}), "utf-8")
    stages = {stage: artifact.key for stage, artifact in ctx.inputs.items()}
    ctx.hand_down(candidate=candidate_of(ctx.inputs, {}), against=against, verdict=ctx.config.verdict, stages=stages)


@pytest.fixture
def gated(toy):
    """The toys with a gate behind them."""
    inputs = ("tokenize", "sft", "train", "evaluate")
    toy.stages.append(Stage("promote", Promote, 1, judge, inputs, binds=opponent))
    return toy


def made(toy: Any, *overrides: str) -> str:
    """Runs the toys, with a record; returns the version."""
    record = RunRecord.start(toy.settings(*overrides), Selection(), toy.root / "artifacts")
    decisions = toy.run(*overrides).decisions
    for decision in decisions.values():
        record.add(decision, None)
    record.finish("completed")
    return str(decisions["promote"].key)


def put(toy: Any, *overrides: str, forced: bool = False) -> None:
    put_in_service(toy.stages, toy.settings(*overrides), forced=forced)


def service(toy: Any) -> Service:
    return Service(toy.root / "artifacts", "toy")


class TestPutting:
    def test_puts_the_model_of_the_configuration_into_service_and_says_what_it_replaced(self, gated, capsys):
        first = made(gated)
        put(gated)
        second = made(gated, "train.beta=0.2")
        put(gated, "train.beta=0.2")
        put(gated, "train.beta=0.2")
        assert capsys.readouterr().out.splitlines() == [
            f"promoted: version {first} is in service now, in place of none",
            f"promoted: version {second} is in service now, in place of {first}",
            f"its model is in service already, as version {second}",
        ]
        runs = sorted(path.name for path in (gated.root / "artifacts" / "runs").iterdir())
        assert [event.run for event in service(gated).history()] == runs

    def test_is_refused_with_the_sentences_of_the_rules_and_done_by_force(self, gated, capsys):
        version = made(gated, "promote.verdict=keep")
        with pytest.raises(StoreError, match="the gate keeps this model out of service") as error:
            put(gated, "promote.verdict=keep")
        assert "2 of 3 rules stand in the way" in error.value.found
        assert "\n    three: refuses 62.0% of normal requests; at most 10.0% is allowed" in error.value.found
        assert "two: has no `x`" in error.value.found
        assert "one:" not in error.value.found
        assert "dpo promote --profile toy --force --set promote.verdict=keep" in error.value.fix
        assert service(gated).current() is None
        put(gated, "promote.verdict=keep", forced=True)
        assert (service(gated).current(), service(gated).history()[-1].action) == (version, "forced")
        assert capsys.readouterr().out.startswith("forced: version")

    def test_of_what_was_not_judged_says_what_to_run(self, gated):
        with pytest.raises(MissingInputError, match="was not judged yet") as error:
            put(gated)
        assert error.value.fix == "dpo run --profile toy"
        with pytest.raises(MissingInputError, match="was not judged yet"):
            put(gated, forced=True)

    def test_by_force_takes_a_verdict_that_was_reached_against_another_model(self, gated):
        made(gated)
        beaten = made(gated, "train.beta=0.3")
        put(gated)
        with pytest.raises(MissingInputError):
            put(gated, "train.beta=0.3")
        put(gated, "train.beta=0.3", forced=True)
        assert service(gated).current() == beaten

    def test_leaves_the_key_of_what_is_in_service_as_it_was(self, gated):
        made(gated)
        put(gated)
        assert set(gated.plan().values()) == {"reuse"}


class TestTakingBack:
    def test_puts_the_one_before_back_or_the_one_that_is_named(self, gated, capsys):
        first = made(gated)
        put(gated)
        second = made(gated, "train.beta=0.2")
        put(gated, "train.beta=0.2")
        take_back(gated.settings(), None)
        take_back(gated.settings(), second)
        assert capsys.readouterr().out.splitlines()[2:] == [
            f"rolled back: version {first} is in service now, in place of {second}",
            f"rolled back: version {second} is in service now, in place of {first}",
        ]
        with pytest.raises(StoreError, match="never was in service"):
            take_back(gated.settings(), "0" * 16)


class TestShowing:
    def show(self, toy: Any, capsys: Any, **given: bool) -> str:
        capsys.readouterr()
        show_promoted(toy.settings(), **({"path": False, "as_json": False} | given))
        return str(capsys.readouterr().out)

    def test_says_what_is_in_service_since_when_and_by_which_run_with_its_numbers_and_history(self, gated, capsys):
        first = made(gated)
        put(gated)
        second = made(gated, "train.beta=0.2")
        put(gated, "train.beta=0.2")
        lines = self.show(gated, capsys).splitlines()
        assert lines[0].startswith(f"version {second} is in service for toy since 2")
        assert ": promoted by run 2" in lines[0]
        assert "  held-out pairs put right: 98.0%" in lines
        assert f"`dpo rollback` would go back to {first}" in lines
        assert lines[-2].endswith(f"  promoted     {second}  in place of {first}")
        assert lines[-1].endswith(f"  promoted     {first}  in place of none")
        told = json.loads(self.show(gated, capsys, as_json=True))
        assert told["in_service"]["version"] == second
        assert told["in_service"]["numbers"]["held-out pairs put right"] == "98.0%"
        assert Path(told["in_service"]["path"]).is_dir()
        assert told["goes_back_to"] == [first]
        assert [event["version"] for event in told["history"]] == [second, first]

    def test_before_the_first_says_so_and_has_no_folder(self, gated, capsys):
        assert self.show(gated, capsys) == "no model is in service yet for toy\n"
        assert json.loads(self.show(gated, capsys, as_json=True)) == {
            "in_service": None,
            "service": "toy",
            "others": {},
            "history": [],
        }
        with pytest.raises(MissingInputError, match="no model in service yet"):
            self.show(gated, capsys, path=True)

    def test_prints_the_folder_with_all_links_resolved(self, gated, capsys):
        version = made(gated)
        put(gated)
        folder = Path(self.show(gated, capsys, path=True).strip())
        assert folder == gated.root / "artifacts" / "promote" / version
        shutil.rmtree(folder)
        with pytest.raises(StoreError, match="are gone") as error:
            self.show(gated, capsys, path=True)
        assert "make it again" in error.value.fix

    def test_names_what_is_in_service_for_other_profiles_in_a_line(self, gated, capsys):
        version = made(gated)
        put(gated, "runtime.service=other")
        assert self.show(gated, capsys).splitlines() == [
            "no model is in service yet for toy",
            f"other services here: other ({version}); a profile's is named by runtime.service",
        ]
        assert service(gated).current() is None

    def test_of_a_model_whose_files_are_gone_still_says_which_it_is(self, gated, capsys):
        version = made(gated)
        put(gated)
        shutil.rmtree(gated.root / "artifacts" / "promote" / version)
        shown = self.show(gated, capsys)
        assert version in shown
        assert f"it cannot serve any more: promote/{version} is gone; what can be done: make it again" in shown
        other = made(gated, "train.beta=0.2")
        put(gated, "train.beta=0.2", forced=True)
        made(gated)
        put(gated, forced=True)
        shutil.rmtree(gated.root / "artifacts" / "promote" / str(service(gated).current()))
        assert f"what can be done: dpo rollback --profile toy --to {other}" in self.show(gated, capsys)
