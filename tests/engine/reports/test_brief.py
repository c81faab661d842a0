from dataclasses import replace
from pathlib import Path

import pytest

from engine.reports.brief import badge, brief
from engine.reports.verdict import Answer
from engine.runs import RunRecord
from engine.stage import Decision

OURS = "0123456789abcdef"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    folder = tmp_path / "runs" / "20260102-030405-demo"
    folder.mkdir(parents=True)
    return RunRecord(
        id=folder.name,
        folder=folder,
        profile="demo",
        overrides=[],
        selection={},
        config={},
        changed={},
        environment={},
        started_at="2026-01-02T03:04:05",
        began=0.0,
        state="completed",
        seconds=130.0,
    )


@pytest.fixture
def judged(record, gated):
    """The record of a run with the gate's verdict."""

    def make(verdict: str = "promote", *rules: dict) -> RunRecord:
        found = gated(verdict, rules) if rules else gated(verdict)
        record.decisions = [Decision(each.stage, "run", "", each.key, each.path, 3.0) for each in found.values()]
        return record

    return make


def rule(name: str, outcome: str) -> dict[str, str]:
    return {"name": name, "outcome": outcome, "words": "so and so", "reason": ""}


def answers(record: RunRecord) -> tuple[str, str, str, str]:
    worked, changed, time, adapter = (answer for _, answer in brief(record))
    return worked, changed, time, adapter


def test_the_four_questions_of_a_newcomer_are_asked_in_their_order(record):
    assert [question for question, _ in brief(record)] == [
        "Did it work?",
        "What changed since the last run?",
        "Which stage took the time?",
        "Where is the adapter?",
    ]
    assert all(answers(record))


def test_it_worked_where_the_gate_let_it_pass_and_the_few_most_telling_numbers_say_how(judged, put):
    put(OURS)
    worked = answers(judged())[0]
    assert worked.startswith("**Yes**, the gate let it pass: all 1 rules that apply are met.")
    assert "Harmful requests refused **2.0% → 100.0%**" in worked
    assert "held-out pairs put right **97.5%**" in worked


def test_it_did_not_where_rules_are_not_met_and_these_are_named(judged):
    worked = answers(judged("keep", rule("over-refusal", "failed"), rule("right", "passed")))[0]
    assert worked.startswith(
        "**No**, the gate did not let it pass: 1 of 2 rules is not met (`over-refusal`). It so and so."
    )


def test_a_number_that_did_not_move_is_told_once(judged, put, monkeypatch):
    put(OURS)
    rows = (("harmful requests refused", "9", "4.0% (1.0 to 9.0)", "4.0% (1.0 to 9.0)"),)
    monkeypatch.setattr(
        "engine.reports.brief.answer_of", lambda find: Answer(("", "out of", "before", "after"), rows, ())
    )
    assert answers(judged())[0].endswith("Harmful requests refused **4.0% as before**.")


@pytest.mark.parametrize("state", ["failed", "crashed", "cancelled"])
def test_a_run_that_did_not_complete_says_so_first_and_why_and_how_far_it_came(judged, state):
    worked = answers(replace(judged(), state=state, error="the <data> is bad\n  fix: mend it"))[0]
    assert worked.startswith("**No, the run ")
    assert "the &lt;data&gt; is bad" in worked
    assert "fix: mend it" not in worked
    assert worked.endswith("The last stage it finished is promote.")


def test_a_run_that_nobody_judged_is_called_neither(record, seal):
    artifact = seal("evaluate", {"eval_rewards/accuracies": 0.5})
    record.decisions = [Decision("evaluate", "run", "", "key1", artifact.path)]
    assert answers(record)[0].startswith("**It completed**, and the gate was not asked.")
    assert "still running" in answers(replace(record, state="running"))[0]


def test_the_badge_says_that_the_gate_did_not_let_it_pass(judged):
    assert badge(judged("keep", rule("a", "failed"))) == ("did not pass the gate", "bad")


def test_the_badge_says_the_verdict_and_never_good_of_what_was_not_judged(judged):
    assert badge(judged()) == ("passed the gate", "good")
    assert badge(replace(judged(), state="failed")) == ("failed", "bad")
    assert badge(replace(judged(), state="running")) == ("running", "open")
    assert badge(replace(judged(), decisions=[])) == ("completed", "open")


def test_a_training_that_the_monitor_stopped_is_said_before_the_numbers_and_beside_the_adapter(record, seal):
    seen = {"monitor": {"stopped_at": 40, "kept_step": 0, "findings": []}}
    train = seal("train", {}, handed_down=seen)
    (train.path / "adapter").mkdir()
    record.decisions = [Decision("train", "run", "", "key1", train.path, 1.0)]
    words = (
        "**The training was stopped at step 40. The adapter that was kept is the one as it was before the first step"
    )
    worked, _, _, adapter = answers(record)
    assert f"{words}: untrained.**" in worked
    assert f"{words}: untrained.**" in adapter


def test_what_cannot_be_told_leaves_the_other_answers_alone(record, monkeypatch, caplog):
    def broken(*_: object) -> str:
        raise ZeroDivisionError("a <bug>")

    monkeypatch.setattr("engine.reports.brief.where_the_time_went", broken)
    worked, _, time, adapter = answers(record)
    assert time == "This could not be told: a &lt;bug&gt;"
    assert "completed" in worked and "not finished" in adapter
    assert "ZeroDivisionError" in caplog.text


def test_a_configuration_of_another_shape_costs_no_answer(record, seal):
    train = seal("train", {})
    (train.path / "adapter").mkdir()
    record.decisions = [Decision("train", "run", "", "key1", train.path, 1.0)]
    record.config = {"model": "x"}
    assert answers(record)[3].startswith("In `")


def test_held_against_a_run_that_was_asked_for_the_question_names_it(record):
    other = replace(record, id="20260101-000000-other")
    assert brief(record, other)[1][0] == "What changed since run 20260101-000000-other?"


class TestTheAdapter:
    def test_is_that_of_the_gate_with_what_loads_it(self, judged, put, seal):
        put(OURS)
        record = judged()
        sft = seal("sft", {}, key="key2")
        (sft.path / "policy").mkdir()
        promoted = record.artifact("promote")
        (promoted.path / "adapter").mkdir()
        record.decisions = [Decision("sft", "reuse", "", "key2", sft.path, 1.0), *record.decisions]
        adapter = answers(record)[3]
        assert adapter.startswith(f"In `{promoted.path}/adapter`. In service now: this run's model")
        assert "`dpo promoted` tells it at any time" in adapter  # the page stays as it is when another one goes there
        assert f'from_pretrained("{sft.path}/policy")' in adapter
        assert f'PeftModel.from_pretrained(base, "{promoted.path}/adapter")' in adapter

    def test_without_a_gate_is_that_of_the_training_onto_the_policy_that_was_given(self, record, seal):
        train = seal("train", {})
        (train.path / "adapter").mkdir()
        record.decisions = [Decision("train", "run", "", "key1", train.path, 1.0)]
        record.config = {"model": {"policy": "some/policy", "policy_revision": "abc"}}
        adapter = answers(record)[3]
        assert adapter.startswith(f"In `{train.path}/adapter`. This run did not ask the gate.")
        assert 'AutoModelForCausalLM.from_pretrained("some/policy", revision="abc")' in adapter
        record.config = {}
        assert "from_pretrained" not in answers(record)[3]

    def test_is_none_where_nothing_was_trained_and_gone_where_it_was_removed(self, record):
        assert answers(record)[3] == "There is none: the training was not finished."
        record.decisions = [Decision("train", "run", "", "k", Path("nowhere"), 1.0)]
        assert answers(record)[3].startswith("It was removed since")
