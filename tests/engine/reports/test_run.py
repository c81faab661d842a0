from dataclasses import replace
from pathlib import Path

import pytest

import engine.reports.run as reports
from engine.reports.page import Answers, Picture
from engine.reports.run import run_report, run_sections, write_report
from engine.reports.to_html import Folded
from engine.runs import PAGE, RunRecord
from engine.stage import Decision


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    folder = tmp_path / "runs" / "20260102-030405-demo"
    folder.mkdir(parents=True)
    return RunRecord(
        id=folder.name,
        folder=folder,
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
    assert "- **train** · Made (1 min 01 s): train.beta: 0.1 → 0.2. In `nowhere`." in page
    assert "- **sft** · Skipped: a policy is given." in page
    assert "a prompt" in page
    assert "dpo says" in page
    assert "**Which stage took the time?** **train**: 1 min 01 s of 2 min 10 s (46.9%)." in page
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
    assert "- passed · `better-than-length`: 97.5% is above 50.0%." in page
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
    assert page.index("## The nights before") < page.index("## Configuration")
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


def titles(sections) -> list[str]:
    return [section.title for section in sections if not isinstance(section, Folded)]


def test_the_whole_page_goes_from_the_answer_to_the_details_and_folds_what_is_long(record, gated, put):
    put("0123456789abcdef")
    record.decisions = [
        Decision(stage, "run", "never made", each.key, each.path, 3.0) for stage, each in gated("promote").items()
    ]
    record.config = {"train": {"beta": 0.2, "loss": []}, "model": {"name": ""}}
    sections = run_sections(record)
    assert titles(sections) == ["Did it work?", "The stages", "Configuration", "Environment"]
    folded = {section.title: section for section in sections if isinstance(section, Folded)}
    assert list(folded) == ["The gate, rule by rule", "evaluate", "compare", "promote", "All keys in force"]
    assert "better-than-length" in str(folded["The gate, rule by rule"].parts)
    assert folded["promote"].summary.startswith("made · verdict of the gate: passed")
    assert "| `train.beta` | `0.2` |" in str(folded["All keys in force"].parts)


def test_nothing_is_told_twice_on_the_page(record, gated):
    record.decisions = [Decision(each.stage, "run", "", each.key, each.path, 3.0) for each in gated("promote").values()]
    parts = [part for section in run_sections(record) for part in section.parts]
    long = [part for part in parts if len(str(part)) > 200]
    assert len(long) == len(set(long))
    assert not [part for part in parts if isinstance(part, str) and part.startswith("**Did it work?**")]


def test_the_stages_have_a_picture_of_what_they_took_with_the_reused_ones_apart(record, seal):
    artifact = seal("evaluate", {"eval_rewards/accuracies": 0.5})
    record.decisions = [
        Decision("train", "run", "train.beta: 0.1 → 0.2", "gone", Path("nowhere"), 61.0),
        Decision("evaluate", "reuse", "nothing it depends on changed", "key1", artifact.path, 75.0),
        Decision("promote", "skip", "not asked"),
    ]
    stages = next(section for section in run_sections(record) if section.title == "The stages")
    made, reused, table = stages.parts
    assert isinstance(made, Picture) and isinstance(reused, Picture)
    assert made.alt == "train: 1 min 01 s"
    assert reused.alt == "evaluate: 1 min 15 s"
    assert "| evaluate | Reused | 1 min 15 s | nothing it depends on changed | `key1` |" in table
    assert "| promote | Skipped | – | not asked | – |" in table


def test_the_answers_of_the_policies_have_a_section_of_their_own(record, seal, evaluated):
    rest = {"tokens": 3, "ended": True, "refused": True, "empty": False, "repetitive": False, "right": False}
    rows = [
        {"policy": policy, "prompt": "a prompt", "kind": "adversarial", "generation": f"{policy} says"} | rest
        for policy in ("start", "dpo")
    ]
    artifact = seal("evaluate", evaluated, rows)
    record.decisions = [Decision("evaluate", "run", "never made", "key1", artifact.path, 1.0)]
    answers = next(section for section in run_sections(record) if section.title == "Answers")
    assert isinstance(answers.parts[0], Answers)


def test_the_command_that_makes_it_again_has_the_profile_what_was_set_and_the_selection(record):
    record.selection = {"only": None, "since": "train", "until": None, "force": True, "of a later version": 1}
    record.overrides = ["train.beta=0.2", "download.files=a file's name"]
    section = next(section for section in run_sections(record) if section.title == "Configuration")
    command = (
        "dpo run --profile demo --from train --force --set train.beta=0.2 --set 'download.files=a file'\"'\"'s name'"
    )
    assert command in section.parts[1]


def test_a_secret_in_the_configuration_is_on_no_page(record, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "hush-hush-hush")
    record.config = {"judge": {"url": "https://hush-hush-hush@a.b", "hush-hush-hush": 1}}
    record.changed, record.overrides = {"judge.url": "hush-hush-hush"}, ["judge.url=hush-hush-hush"]
    record.error, record.environment = "hush-hush-hush", {"hush-hush-hush": "hush-hush-hush"}
    assert "hush-hush" not in run_report(record)
    assert "hush-hush" not in write_report(record).read_text()


def test_the_page_is_one_file_with_the_verdict_in_its_title_and_the_answers_in_front(record, gated, put):
    put("0123456789abcdef")
    record.decisions = [Decision(each.stage, "run", "", each.key, each.path, 3.0) for each in gated("promote").values()]
    path = write_report(record)
    assert path == record.folder / PAGE
    html = path.read_text()
    assert "<title>passed the gate · Run 20260102-030405-demo</title>" in html
    assert html.index("Where is the adapter?") < html.index('<section id="did-it-work">')


def test_a_part_that_cannot_be_told_leaves_the_others_as_they_are(record, gated, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a <bug>")

    record.decisions = [Decision(each.stage, "run", "", each.key, each.path, 3.0) for each in gated("promote").values()]
    monkeypatch.setattr(reports, "stage_parts", broken)
    monkeypatch.setattr(reports, "answer_of", broken)
    sections = run_sections(record)
    assert "Configuration" in titles(sections)
    assert "This part could not be told: a &lt;bug&gt;" in str(sections[0].parts)
    assert "a part of the report was not made: Did it work?: a <bug>" in caplog.text


def test_against_another_run_the_page_is_held_against_that_one_and_has_a_file_of_its_own(record):
    folder = record.folder.with_name("20260101-000000-demo")
    folder.mkdir()
    other = replace(record, id=folder.name, folder=folder, changed={}, config={"train": {"beta": 0.1}})
    path = write_report(replace(record, config={"train": {"beta": 0.2}}), other)
    assert path.name == "report-against-20260101-000000-demo.html"
    assert "Compared with run 20260101-000000-demo" in path.read_text()


def test_a_run_that_failed_begins_with_its_error(record):
    sections = run_sections(replace(record, state="failed", error="it broke\n  fix: mend it"))
    assert sections[0].title == "How it ended"
    assert "fix: mend it" in sections[0].parts[1]
