"""What `dpo report` shows: a run's page in words, and where the one with pictures is."""

import json
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StoreError
from engine.reports.markdown import escape, plain
from engine.reports.page import Section
from engine.runs import PAGE, RECORD, RunRecord, all_runs, latest, mark_crashed

LAST = "last"  # stands for the run before


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        run: the id of a run; the latest where it is empty.
        against: the id of the run that it is held against, or `LAST`; nothing where it is empty.
        path: whether only the place of the page with pictures is wanted.
        opened: whether a browser is to show it.
        as_json: whether the record's facts are wanted instead.
    """

    run: str = ""
    against: str = ""
    path: bool = False
    opened: bool = False
    as_json: bool = False


def show_report(root: Path, wish: Wish) -> None:
    """Prints what was asked for.

    A page is made from the record and the sealed artifacts whenever a run or an opponent is named, or a browser is to
    show it; so an old run gets what later versions of the reports tell.

    Raises:
        StoreError: there is no such run, or none to hold it against; or no browser can be started.
    """
    mark_crashed(root)
    record = RunRecord.load(_folder(root, wish.run)) if wish.run else latest(root)
    if record is None:
        raise StoreError("there is no run to report yet", where=str(root / "runs"), fix="dpo run")
    other = _opponent(record, root, wish.against) if wish.against else None
    if wish.as_json:
        print(_facts(record, other))
        return
    page = _page(record, other, wish)
    if wish.path:
        print(page)
    elif not wish.opened:
        _print(_words(record, other))
        if other is not None:
            print(f"\nwith pictures: {page}")
    if wish.opened:
        _open(page)


def _folder(root: Path, run: str) -> Path:
    folders = {folder.name: folder for folder in all_runs(root)}
    if run not in folders:
        latest_few = ", ".join(list(folders)[:5]) or "there are none"
        expected = f"an id; the latest: {latest_few}"
        raise StoreError(f"there is no run `{run}`", expected=expected, where=str(root / "runs"))
    return folders[run]


def _opponent(record: RunRecord, root: Path, against: str) -> RunRecord:
    from engine.reports.against import previous

    if against != LAST:
        return RunRecord.load(_folder(root, against))
    found = previous(record, root)
    if found is None:
        raise StoreError(
            f"there is no run before {record.id} to hold it against",
            expected=f"an earlier run of profile `{record.profile}` that completed and evaluated",
            where=str(root / "runs"),
        )
    return found


def _page(record: RunRecord, other: RunRecord | None, wish: Wish) -> Path:
    """Where the page with pictures is, made anew where it is asked for by name or could be out of date."""
    page = record.folder / PAGE
    named = bool(wish.run and wish.path) or wish.opened or other is not None
    return _made(record, other) if named or (wish.path and _is_outdated(page, record)) else page


def _is_outdated(page: Path, record: RunRecord) -> bool:
    """Whether a page is not there, or was made before its run's record was last written."""
    try:
        return record.state == "running" or page.stat().st_mtime < (record.folder / RECORD).stat().st_mtime
    except OSError:
        return True


def _made(record: RunRecord, other: RunRecord | None) -> Path:
    """Writes the page, and again where the run went on meanwhile: it might replace a later one of the run's own."""
    from engine.reports.run import write_report

    page, now = write_report(record, other), RunRecord.load(record.folder)
    while (now.state, now.decisions) != (record.state, record.decisions):
        record = now
        page, now = write_report(record, other), RunRecord.load(record.folder)
    return page


def _words(record: RunRecord, other: RunRecord | None) -> str:
    from engine.reports.run import run_report
    from engine.reports.to_markdown import sections_to_markdown

    if other is None:
        return run_report(record)
    from engine.reports.against import since_sections, since_words

    head = f"# Run {escape(record.id)} against {escape(other.id)}\n\n"
    told = "\n".join(f"- {escape(words)}" for words in since_words(record, other))
    return head + sections_to_markdown([Section("What changed", (told,)), *since_sections(record, other)])


def _print(words: str) -> None:
    """Markdown as it is for another program, set in type for a terminal."""
    if not sys.stdout.isatty():
        print(words, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(words, hyperlinks=False))


def _open(page: Path) -> None:
    if not webbrowser.open(page.resolve().as_uri()):
        raise StoreError("no browser could be started here", where=plain(page), fix="open that file in a browser")


def _facts(record: RunRecord, other: RunRecord | None) -> str:
    """The record as it is kept, with where its pages are, as JSON."""
    facts = json.loads((record.folder / RECORD).read_text("utf-8"))
    pages = {"folder": str(record.folder), "page": str(record.folder / PAGE)}
    return json.dumps(facts | pages | ({"against": other.id} if other else {}), indent=1, ensure_ascii=False)
