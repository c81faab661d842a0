from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from engine.reports.markdown import escape, plain
from engine.runs import RunRecord
from engine.stage import Decision
from flows import _pages
from flows._line import Line
from flows._pages import (
    MARKDOWN_BYTES,
    in_short,
    place,
    publish,
    publish_link,
    publish_stage,
    run_page,
    spoken,
    stage_page,
    tell_end,
)

LINK = "http://127.0.0.1:4201/runs/0123456789abcdef/20261123-020000-demo/"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was published: key, text and description."""
    published: list[Any] = []

    def markdown(markdown: str, key: str, description: str | None) -> None:
        published.append((key, markdown, description))

    def link(link: str, link_text: str, key: str, description: str) -> None:
        published.append((key, link, description))

    monkeypatch.setattr(_pages, "create_markdown_artifact", markdown)
    monkeypatch.setattr(_pages, "create_link_artifact", link)
    monkeypatch.setattr(_pages, "link_to", lambda record: LINK)
    return published


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A run that failed in its training."""
    folder = tmp_path / "artifacts" / "runs" / "20261123-020000-demo"
    folder.mkdir(parents=True)
    return RunRecord(
        id=folder.name,
        folder=folder,
        profile="demo",
        overrides=[],
        selection={},
        config={},
        changed={},
        environment={"torch": "2.13"},
        started_at="2026-11-23T02:00:00+0000",
        began=1795399200.0,
        state="failed",
        error="the margins are not zero",
        seconds=90.0,
        decisions=[Decision("sft", "run", "never made", "k1", None, 80.0)],
    )


def test_a_page_that_cannot_be_written_says_so_in_its_place_and_silences_nobody(
    line: Line, published: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> str:
        raise KeyError("a number <b> that the stage did not record")

    publish(line, "dpo-train", broken)
    publish(line, "dpo-evaluate", lambda: "a page")
    assert "the page dpo-train could not be written: KeyError" in caplog.text
    assert [key for key, *_ in published] == ["dpo-train", "dpo-evaluate"]
    assert "could not be written: KeyError" in published[0][1] and "<b>" not in published[0][1]


def test_a_page_that_the_server_refuses_is_a_warning(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("the key is none")

    monkeypatch.setattr(_pages, "create_markdown_artifact", lambda *_, **__: refuse())
    publish(line, "dpo-train", lambda: "a page")
    assert "could not publish the report dpo-train: ValueError" in caplog.text


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (Decision("train", "run", "never made", "k", None, 75.0), "Made in 1 min 15 s · loss at the end: 0.5"),
        (Decision("train", "resume", "goes on", "k", None, 5.0), "Resumed in 5.0 s · loss at the end: 0.5"),
        (Decision("train", "reuse", "nothing changed", "k", None, 5.0), "Reused · loss at the end: 0.5"),
        (Decision("sft", "skip", "a | policy\nis given"), "Skipped: a | policy ⏎ is given"),
    ],
)
def test_a_list_of_pages_tells_each_stage_in_a_line(decision: Decision, told: str) -> None:
    trained: Any = SimpleNamespace(stage="train", metrics={"loss": 0.5})
    assert in_short(decision, None if decision.action == "skip" else trained) == told


def test_a_stages_page_has_its_pictures_within_it_and_stays_below_what_the_ui_lists(
    monkeypatch: pytest.MonkeyPatch, line: Line, published: list[Any]
) -> None:
    from engine.reports import stages
    from engine.reports.page import Picture

    large, small = (Picture(f"{size}", f"<svg>{'x' * size}</svg>", "what it shows") for size in (MARKDOWN_BYTES, 999))
    monkeypatch.setattr(
        stages, "stage_parts", lambda artifact, decision, examples: ["## train", small, large, "the end"]
    )
    publish_stage(line, Decision("train", "run", "never made", "k", None, 1.0), None)
    ((key, page, description),) = published
    assert (key, description) == ("dpo-train", "Made in 1.0 s")
    assert page.count("](data:image/svg+xml;base64,") == 1 and "the end" in page
    assert len(page.encode()) < MARKDOWN_BYTES


def test_a_stage_that_was_skipped_has_a_page() -> None:
    assert "a policy is given" in stage_page(Decision("sft", "skip", "a policy is given"), None)


def test_the_runs_page_begins_with_the_link_to_the_whole_report(record: RunRecord, published: list[Any]) -> None:
    page = run_page(record)
    assert page.splitlines()[0] == f"[Open the whole report]({LINK})"
    assert "the margins are not zero" in page and "sft" in page


def test_without_a_server_of_reports_the_page_names_the_file(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch, line: Line, published: list[Any]
) -> None:
    monkeypatch.setattr(_pages, "link_to", lambda record: "")
    publish_link(line, record)
    assert published == []
    for name in ("run.json", "report.md", "report.html"):  # the best that is there
        (record.folder / name).write_text("a report")
        assert place(record).name == name
        assert str(record.folder / name) in run_page(record).splitlines()[0]


def test_the_link_is_an_artifact_of_its_own(record: RunRecord, line: Line, published: list[Any]) -> None:
    publish_link(line, record)
    ((key, link, description),) = published
    assert (key, link) == ("dpo-report", LINK)
    assert record.id in description


HOSTILE = "<b>x</b> [here](http://evil.example) ![a](http://evil.example/x.png) `c` *d* # e"


def read(description: str) -> str:
    """What a reader sees of a description, which Prefect's list shows as markdown; it does nothing but show."""
    made = MarkdownIt("commonmark", {"html": True}).render(description)
    assert not any(mark in made for mark in ("<b>", "<a ", "<img", "<code", "<em"))
    return spoken(description)


def test_what_the_list_of_pages_tells_of_a_stage_is_text_whatever_it_says(line: Line, published: list[Any]) -> None:
    decision = Decision("sft", "skip", HOSTILE)
    assert in_short(decision, None) == f"Skipped: {HOSTILE}", "a line of a terminal is no markdown"
    publish_stage(line, decision, None)
    assert read(published[0][2]) == f"Skipped: {HOSTILE}"


def test_what_the_list_of_pages_tells_of_a_run_is_text_and_the_log_has_no_marks(
    record: RunRecord, line: Line, published: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dpo")
    record.error = HOSTILE
    tell_end(line, record)
    told = next(each.getMessage() for each in caplog.records if each.levelname == "INFO")
    assert told.startswith(f"Did it work? No, the run failed: {HOSTILE}")
    assert read(published[-1][2]) == told.removeprefix("Did it work? ")


def test_the_name_of_a_run_in_the_description_of_its_link_is_text(
    record: RunRecord, line: Line, published: list[Any]
) -> None:
    record.id = f"20261123-020000-{HOSTILE}"
    publish_link(line, record)
    assert f"All of run {record.id} on one page" in read(published[0][2])


def test_the_last_lines_of_the_log_answer_what_a_newcomer_asks(
    record: RunRecord, line: Line, published: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dpo")
    tell_end(line, record)
    told = [each.getMessage() for each in caplog.records if each.levelname == "INFO"]
    assert told[0].startswith("Did it work? No, the run failed: the margins are not zero")
    assert any(line.startswith("Which stage took the time?") and "sft with 1 min 20 s" in line for line in told)
    assert any(line.startswith("Where is the adapter? There is none") for line in told)
    assert told[-1] == f"The whole report: {LINK}"
    assert published[-1][0] == "dpo-run" and published[-1][2].startswith("No, the run failed")


def test_a_fault_in_the_answers_changes_nothing_about_how_a_run_ends(
    record: RunRecord,
    line: Line,
    published: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(record: RunRecord) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr("engine.reports.brief.brief", broken)
    tell_end(line, record)
    assert "what came of the run cannot be told: ValueError: a bug" in caplog.text
    assert published[-1][0] == "dpo-run"


def test_an_answer_is_logged_without_marks_and_without_its_blocks_of_code() -> None:
    text = "**Yes**, the gate: `a*b` is\nmet,\n\nx\\_y &lt;b&gt;.\n\n```\ncode\n```"
    assert spoken(text) == "Yes, the gate: a*b is met, x_y <b>."
    assert spoken("") == ""


@given(st.text())
def test_whatever_was_escaped_comes_back_as_it_was(text: str) -> None:
    shown = plain(text)
    assert spoken(f"x{escape(text)}x").replace(" ", "") == plain(f"x{shown}x", 700).replace(" ", "")


def test_a_hostile_reason_shows_as_text_on_a_stages_page() -> None:
    hostile = "<script>alert(1)</script> | a | b | ](javascript:x) `c` $x$"
    page = stage_page(Decision("sft", "skip", hostile), None)
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert "<script" not in shown and "href" not in shown and "<table" not in shown


def test_the_beginning_of_the_runs_page_stays_however_much_there_is_to_say(record: RunRecord) -> None:
    record.error = "x" * 200_000
    record.changed = {f"download.files.{number}": "a/path/of/some/length" for number in range(5_000)}
    page = run_page(record)
    assert len(page.encode()) <= MARKDOWN_BYTES
    assert "Did it work?" in page and "Which stage took the time?" in page
