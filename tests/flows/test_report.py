"""`dpo report`, on runs of stages that make nothing but their numbers."""

import json
import os
import sys
from pathlib import Path

import pytest

import engine.reports.run
from engine.errors import StoreError
from engine.runs import RunRecord
from engine.selection import Selection
from engine.stage import Decision
from flows._report import Wish, show_report


@pytest.fixture
def root(toy) -> Path:
    return toy.root / "artifacts"


@pytest.fixture
def ended(toy, root):
    """A run that ended, with some overrides."""

    def make(*overrides: str, state: str = "completed", error: str = "") -> RunRecord:
        record = RunRecord.start(toy.settings(*overrides), Selection(), root)
        for name, artifact in toy.run(*overrides).artifacts.items():
            record.add(Decision(name, "run", "never made", seconds=1.0), artifact)
        record.finish(state, error)
        return record

    return make


@pytest.fixture
def shown(capsys, root):
    """What is printed on a wish."""

    def show(**wish) -> str:
        capsys.readouterr()
        show_report(root, Wish(**wish))
        return capsys.readouterr().out

    return show


def test_prints_the_short_page_of_the_latest_run_or_of_the_one_that_is_named(ended, shown):
    first, second = ended(), ended("train.beta=0.2")
    assert shown() == (second.folder / "report.md").read_text()
    assert shown(run=first.id) == (first.folder / "report.md").read_text()


def test_on_a_terminal_the_page_is_set_in_type(ended, shown, monkeypatch):
    ended()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    page = shown()
    assert "Did it work?" in page
    assert "| ---" not in page
    assert "\x1b]8;" not in page


def test_the_path_is_that_of_the_page_with_pictures_which_is_made_where_it_is_missing(ended, shown):
    page = ended().folder / "report.html"
    assert Path(shown(path=True).strip()) == page
    page.unlink()
    shown(path=True)
    assert page.read_text().startswith("<!doctype html>")


def test_the_page_of_a_run_that_is_named_is_made_anew_and_that_of_the_latest_is_left(ended, shown):
    record = ended()
    page = record.folder / "report.html"
    page.write_text("of an earlier version")
    shown(path=True)
    assert page.read_text() == "of an earlier version"
    shown(path=True, run=record.id)
    assert "of an earlier version" not in page.read_text()


def test_the_page_of_a_run_that_is_under_way_is_that_of_this_moment(toy, root, shown):
    record = RunRecord.start(toy.settings(), Selection(), root)
    page = record.folder / "report.html"
    page.write_text("of an hour ago")
    assert Path(shown(path=True).strip()) == page
    assert "still running" in page.read_text()


def test_a_page_that_is_older_than_the_record_is_made_anew(ended, shown):
    record = ended()
    page = record.folder / "report.html"
    page.write_text("of an hour ago")
    os.utime(page, (0, 0))
    shown(path=True)
    assert "of an hour ago" not in page.read_text()


@pytest.mark.parametrize("against", [False, True])
def test_a_run_that_ends_while_its_page_is_made_has_the_page_of_its_end(toy, root, ended, shown, monkeypatch, against):
    first = ended()
    record = RunRecord.start(toy.settings(), Selection(), root)
    write, written = engine.reports.run.write_report, []

    def ends_meanwhile(told: RunRecord, other: RunRecord | None = None) -> Path:
        written.append(told.state)
        if written == ["running"]:
            RunRecord.load(record.folder).finish("completed")
        return write(told, other)

    monkeypatch.setattr("engine.reports.run.write_report", ends_meanwhile)
    page = Path(shown(path=True, against=first.id if against else "").strip())
    assert written == ["running", "completed", "completed"]
    assert "still running" not in page.read_text()


def test_a_browser_is_given_the_page_and_where_there_is_none_its_place_is_told(ended, shown, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    record = ended()
    assert shown(opened=True) == ""
    assert opened == [(record.folder / "report.html").resolve().as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    with pytest.raises(StoreError, match="no browser could be started") as told:
        shown(opened=True)
    assert told.value.where.endswith("report.html")


def test_against_another_run_it_tells_what_changed_since_and_leaves_a_page_of_it(ended, shown):
    first, second = ended(), ended("train.beta=0.2")
    words = shown(against=first.id)
    page = second.folder / f"report-against-{first.id}.html"
    assert words.startswith(f"# Run {second.id} against {first.id}")
    assert "`train.beta`" in words
    assert f"- Compared with run {first.id}, which began" in words
    assert words.endswith(f"with pictures: {page}\n")
    assert "train.beta" in page.read_text()
    assert Path(shown(against=first.id, path=True).strip()) == page
    back = shown(run=first.id, against=second.id)
    assert back.startswith(f"# Run {first.id} against {second.id}")
    assert "and is the newer of the two" in back


def test_the_last_run_is_the_one_before_and_where_there_is_none_that_is_an_error(ended, shown):
    first, second = ended(), ended("train.beta=0.2")
    assert f"# Run {second.id} against {first.id}" in shown(against="last")
    with pytest.raises(StoreError, match=f"no run before {first.id} to hold it against"):
        shown(run=first.id, against="last")


def test_as_json_it_is_the_record_and_where_its_pages_are(ended, shown):
    first, second = ended(), ended("train.beta=0.2")
    facts = json.loads(shown(as_json=True, against=first.id))
    assert facts["id"] == second.id
    assert facts["page"] == str(second.folder / "report.html")
    assert facts["against"] == first.id
    assert facts["stages"][0]["stage"] == "download"
    assert "against" not in json.loads(shown(as_json=True))


def test_a_run_that_does_not_exist_is_an_error_that_names_the_latest_few(ended, shown):
    with pytest.raises(StoreError, match="there is no run to report yet"):
        shown()
    with pytest.raises(StoreError, match="there are none"):
        shown(run="nope")
    record = ended()
    for wish in ({"run": "nope"}, {"against": "nope"}):
        with pytest.raises(StoreError, match=f"the latest: {record.id}"):
            shown(**wish)
