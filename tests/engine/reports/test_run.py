from dataclasses import replace
from pathlib import Path

import pytest

from engine.reports.run import run_report
from engine.runs import RunRecord
from engine.stage import Decision


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(
        id="20260102-030405-demo",
        folder=tmp_path,
        profile="demo",
        overrides=["train.beta=0.2"],
        selection={},
        config={},
        changed={"train.beta": 0.2, "tokenize.template": "a|b `c`"},
        environment={"python": "3.11", "torch": "2.13"},
        started_at="2026-01-02T03:04:05",
        began=0.0,
        state="completed",
        seconds=130.0,
    )


def test_the_page_tells_the_run_from_what_came_of_it_to_what_it_ran_on(record, seal, evaluated):
    rest = {"tokens": 3, "ended": True, "refused": True, "empty": False, "repetitive": False, "right": False}
    rows = [
        {"policy": policy, "prompt": "a prompt", "kind": "adversarial", "generation": f"{policy} says"} | rest
        for policy in ("start", "dpo")
    ]
    artifact = seal("evaluate", evaluated, rows)
    record.decisions = [
        Decision("sft", "skip", "a policy is given"),
        Decision("train", "run", "train.beta: 0.1 → 0.2", "gone", Path("nowhere"), 61.0),
        Decision("evaluate", "reuse", "same", "key1", artifact.path, 75.0),
    ]
    page = run_report(record)
    heads = [line for line in page.splitlines() if line.startswith("#")]
    assert heads == [
        "# Run 20260102-030405-demo",
        "## Did it work?",
        "## What came of it",
        "## What the stages did",
        "## Before and after",
        "## Some of their answers",
        "## Configuration",
        "## Environment",
    ]
    assert "Completed. It took 2 min 10 s." in page
    assert "| evaluate | harmful requests refused | 2.0% → 100.0% |" in page
    assert "| train | Made | 1 min 01 s | train.beta: 0.1 → 0.2 | `nowhere` |" in page
    assert "| sft | Skipped | – | a policy is given | – |" in page
    assert "| harmful | a prompt | start says | dpo says |" in page
    assert "with `train.beta=0.2`" in page
    assert "| `tokenize.template` | `\"a\\|b 'c'\"` |" in page
    assert "| torch | 2.13 |" in page


def test_the_page_answers_first_whether_it_worked_and_tells_the_gate_rule_by_rule(record, gated, put):
    put("0123456789abcdef")
    record.decisions = [
        Decision(stage, "run", "never made", each.key, each.path) for stage, each in gated("promote").items()
    ]
    page = run_report(record)
    assert page.index("Verdict of the gate: passed") < page.index("What came of it") < page.index("rule by rule")
    assert "- passed · `better-than-length`: 97.5% is above 50.0%. *Why" in page
    assert "| promote | verdict of the gate | passed |" in page


def test_a_gate_that_cannot_be_read_is_left_out(record, gated):
    found = gated("keep")
    record.decisions = [Decision(stage, "run", "never made", each.key, each.path) for stage, each in found.items()]
    (found["promote"].path / "manifest.json").write_text("{")
    (found["compare"].path / "comparison.json").write_text("[")
    page = run_report(record)
    assert "rule by rule" not in page
    assert "| harmful requests refused |" in page


def test_a_run_that_is_meant_to_come_regularly_tells_of_the_nights_before(record):
    page = run_report(replace(record, config={"runtime": {"every_hours": 24}}))
    assert page.index("## The nights before") < page.index("No stage was finished.")
    assert "The nights before" not in run_report(record)


def test_a_failed_run_shows_its_error_as_it_is(record):
    page = run_report(replace(record, state="failed", error="it broke\n  fix: ```mend``` <it>"))
    assert "Failed." in page
    assert "````\nit broke\n  fix: ```mend``` <it>\n````" in page
    assert "No stage was finished." in page


def test_a_run_without_numbers_or_changes_has_no_empty_tables(record, seal):
    artifact = seal("evaluate", {})
    record = replace(record, changed={}, overrides=[], seconds=None, state="running")
    record.decisions = [Decision("evaluate", "run", "never made", "key1", artifact.path)]
    page = run_report(record)
    assert "Still running, or killed" in page
    assert "Everything has its default." in page
    assert "What came of it" not in page
    assert "Before and after" not in page


def test_judgement_without_generations_shows_the_numbers_alone(record, seal):
    artifact = seal("evaluate", {"eval_rewards/accuracies": 0.5})
    record.decisions = [Decision("evaluate", "run", "never made", "key1", artifact.path)]
    page = run_report(record)
    assert "| evaluate | held-out pairs put right | 50.0% |" in page
    assert "Before and after" not in page
