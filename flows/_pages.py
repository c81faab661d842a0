"""What a run publishes in Prefect: a page for each stage and for itself, the link to its report, its name and tags."""

import logging
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from prefect import get_client
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from engine.config import Settings
from engine.reports import headline
from engine.reports.markdown import code, duration, escape, plain
from engine.reports.page import Picture
from engine.runs import PAGE, RECORD, REPORT, RunRecord
from engine.stage import Decision
from engine.store import Artifact
from flows._line import Line
from flows._reports import link_to

EXAMPLES = 4  # prompts of each kind whose answers evaluate's page tells
MARKDOWN_BYTES = 90_000  # the list call of the UI returns every artifact's whole text
OUTCOMES = {"run": "Made", "resume": "Resumed", "reuse": "Reused", "skip": "Skipped"}  # as the stages' states are named
_log = logging.getLogger("dpo")


def publish(line: Line, key: str, write: Callable[[], str], *, summary: str = "", during: str = "") -> None:
    """Publishes markdown under a stable key, so that the UI shows its history from run to run.

    Args:
        write: makes the markdown; where that fails, the page says so.
        summary: what the list of a run's artifacts says of it, as plain text; Prefect shows it as markdown.
    """

    def create() -> None:
        create_markdown_artifact(_written(key, write), key=key, description=escape(summary) or None)

    line.tell(f"the report {key}", create, during=during)


def _written(key: str, write: Callable[[], str]) -> str:
    try:
        return write()
    except Exception as error:  # what cannot be drawn is no trouble of the server's
        _log.warning("the page %s could not be written: %s: %s", key, type(error).__name__, error)
        return f"This page could not be written: {escape(f'{type(error).__name__}: {error}', 500)}\n"


def publish_stage(line: Line, decision: Decision, artifact: Artifact | None) -> None:
    """Publishes what became of a stage; of a reused one, too, so that each run's pages are whole."""
    key, summary = f"dpo-{decision.stage}", in_short(decision, artifact)
    publish(line, key, lambda: stage_page(decision, artifact), summary=summary, during=decision.stage)


def stage_page(decision: Decision, artifact: Artifact | None) -> str:
    """What became of a stage, with pictures, as markdown."""
    from engine.reports.stages import stage_parts
    from engine.reports.to_markdown import to_markdown

    return to_markdown(stage_parts(artifact, decision, examples=EXAMPLES), pictures=True, limit=MARKDOWN_BYTES)


def in_short(decision: Decision, artifact: Artifact | None) -> str:
    """A stage in a line of plain text: what became of it, and its two most telling numbers."""
    told = OUTCOMES[decision.action]
    if decision.action == "skip":
        told += f": {decision.why}"
    elif decision.action != "reuse":
        told += f" in {duration(decision.seconds)}"
    numbers = headline(artifact, reused=decision.action == "reuse")[:2] if artifact else []
    return plain(" · ".join([told, *(f"{name}: {shown}" for name, shown in numbers)]), 300)


def publish_link(line: Line, record: RunRecord) -> None:
    """Publishes where the run's report opens, which it does from the beginning; nothing where nobody serves it here."""
    if link := link_to(record):
        described = f"All of run {escape(record.id)} on one page, with its pictures"
        line.tell("the report's link", lambda: create_link_artifact(link, "Open the report", "dpo-report", described))


def tell_end(line: Line, record: RunRecord) -> None:
    """Logs what is asked first, last, where Prefect's UI shows it, and publishes the run's own page."""
    answers = _answers(record)
    for question, answer in answers:
        _log.info("%s %s", question, spoken(answer))
    _log.info("The whole report: %s", link_to(record) or place(record))
    summary = spoken(answers[0][1]) if answers else record.state
    publish(line, "dpo-run", lambda: run_page(record), summary=summary)


def _answers(record: RunRecord) -> list[tuple[str, str]]:
    from engine.reports.brief import brief

    try:
        return [(question, answer) for question, answer in brief(record) if answer]
    except Exception as error:  # no fault of a report may change how a run ends
        _log.warning("what came of the run cannot be told: %s: %s", type(error).__name__, error)
        return []


def run_page(record: RunRecord) -> str:
    """A run's page as markdown: where the whole report is, the short one, and the pictures of all stages together."""
    from engine.reports.run import short_parts
    from engine.reports.to_markdown import to_markdown

    link = link_to(record)
    whole = f"[Open the whole report]({link})" if link else f"The whole report: {code(place(record))}"
    return to_markdown([whole, *short_parts(record), *_pictures(record)], pictures=True, limit=MARKDOWN_BYTES)


def _pictures(record: RunRecord) -> list[Picture]:
    from engine.reports.run import run_sections
    from engine.reports.to_html import Folded

    shown = (section for section in run_sections(record) if not isinstance(section, Folded))
    return [part for section in shown for part in section.parts if isinstance(part, Picture)]


def spoken(markdown: str) -> str:
    """What a text in markdown says, as plain text on one line; blocks of code are left out."""
    from markdown_it import MarkdownIt

    blocks = (token.children or [] for token in MarkdownIt("commonmark").parse(markdown) if token.type == "inline")
    words = ("".join(" " if each.type == "softbreak" else each.content for each in block) for block in blocks)
    return plain(" ".join(words), 700)


def place(record: RunRecord) -> Path:
    """The file that tells the whole run, as a page for browsers where there is one."""
    folder = record.folder.resolve()
    return next((path for name in (PAGE, REPORT) if (path := folder / name).is_file()), folder / RECORD)


def tag_run(settings: Settings, name: str) -> None:
    """Names and tags the flow run by what runs: profile, β, and the service that it is for.

    Args:
        name: what it was named by its parameters alone; a name that somebody else chose stays.
    """
    beta = getattr(settings.stages["train"], "beta", None)
    told = name if beta is None or ", beta " in name else f"{name}, beta {beta:g}"
    tags = [f"profile:{settings.profile}", f"service:{settings.named_runtime.service}"]
    tags += [f"beta:{beta}"] if beta is not None else []
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
        shown = plain(told) if run.name == name else None
        client.update_flow_run(run.id, name=shown, tags=sorted({*map(plain, (*tags, *run.tags))}))


def tag_key(key: str) -> None:
    """Tags the flow run with the key of its training, so that the runs of one adapter are found together."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
        client.update_flow_run(run.id, tags=sorted({*run.tags, f"key:{key[:8]}"}))
