"""A run's page: what each stage did and why, what came of it, and under which configuration."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.artifact import Artifact
from engine.files import write_atomically
from engine.reports import policies
from engine.reports.brief import badge, brief
from engine.reports.configuration import changes, command, every_key, versions
from engine.reports.gate import gate_parts, rulings
from engine.reports.headlines import headline
from engine.reports.markdown import block, code, duration, escape, plain, table
from engine.reports.page import Part, Section
from engine.reports.recorded import began
from engine.reports.stages import outcome, stage_parts
from engine.reports.times import unfinished
from engine.reports.to_html import Folded, Head, to_html
from engine.reports.to_markdown import sections_to_markdown
from engine.reports.verdict import TITLE, answer_of, as_markdown
from engine.stage import Decision

if TYPE_CHECKING:
    from engine.runs import RunRecord

_STATES = {
    "running": "Still running, or killed before it could say how it ended.",
    "completed": "Completed.",
    "failed": "Failed. What was sealed before is kept; the next run goes on from there.",
    "crashed": "Crashed. What was sealed before is kept; the next run goes on from there.",
    "cancelled": "Cancelled. What was sealed before is kept; the next run goes on from there.",
}
_ERROR_CHARACTERS = 8_000  # `run.json` has all of it
_HEADLINES = 3  # of a stage that are shown while it is folded
_log = logging.getLogger("dpo")


def run_report(record: "RunRecord") -> str:
    """The short page as markdown without pictures, from the record and the artifacts it names.

    What is gone is left out.
    """
    return "\n\n".join(part for part in short_parts(record) if part) + "\n"


def run_sections(record: "RunRecord", other: "RunRecord | None" = None) -> list[Section]:
    """The whole page below its head, from the record and the artifacts it names; what is gone is left out.

    Args:
        other: the run that this one is held against; the last one before it that can be where None is given.
    """
    judged = _told(TITLE, partial(_judged, record))
    chapters: list[tuple[str, Callable[[RunRecord], Iterator[Section]]]] = [
        ("How it ended", _ending),
        (TITLE, lambda each: iter(judged)),
        ("What changed", lambda each: _since(each, other)),
        ("The nights before", _nights),
        ("The stages", lambda each: _stages(each, judged)),
        ("Answers", _answers),
        ("Configuration", _configured),
    ]
    sections: list[Section] = []
    for title, tell in chapters:
        sections += _told(title, partial(tell, record))
    return [section for section in sections if section.parts]


def write_report(record: "RunRecord", other: "RunRecord | None" = None) -> Path:
    """Writes the whole page as one HTML file beside the record, and returns where it is.

    Raises:
        OSError: it cannot be written.
    """
    from engine.runs import PAGE  # it writes reports

    path = record.folder / (PAGE if other is None else f"report-against-{other.id}.html")
    write_atomically(path, draw_report(record, other))
    return path


def draw_report(record: "RunRecord", other: "RunRecord | None" = None) -> str:
    """The whole page as HTML; `other` as `run_sections` has it."""
    verdict, tone = badge(record)
    head = Head(f"Run {record.id}", verdict, tone, _facts(record), brief(record, other))
    return to_html(head, run_sections(record, other))


def _told(title: str, tell: Callable[[], Iterator[Section]], kind: type[Section] = Section) -> list[Section]:
    """What tells a part of the page; one that a broken artifact or a bug keeps from being told says so itself."""
    try:
        return list(tell())
    except Exception as trouble:
        _log.warning("a part of the report was not made: %s: %s", title, trouble)
        return [kind(title, (f"This part could not be told: {escape(trouble, 300)}",))]


def _ending(record: "RunRecord") -> Iterator[Section]:
    if record.error:
        yield Section("How it ended", (_state(record), block(record.error)))


def _judged(record: "RunRecord") -> Iterator[Section]:
    """The table in one piece, which a page has the room for, and the gate."""
    answer, promoted = answer_of(record.artifact), record.artifact("promote")
    rows = table([*map(escape, answer.header)], [[*map(escape, row)] for row in answer.rows])
    words = "\n".join(_item(line) for line in answer.words)
    yield Section(TITLE, tuple(part for part in (rows, _rates(record), words) if part))
    if promoted is not None and promoted.readable:
        yield Folded("The gate, rule by rule", tuple(gate_parts(promoted)), f"{len(rulings(promoted))} rules")


def _rates(record: "RunRecord") -> Part | None:
    evaluated = record.artifact("evaluate")
    return policies.rates_picture(evaluated.metrics) if evaluated is not None and evaluated.readable else None


def _since(record: "RunRecord", other: "RunRecord | None") -> Iterator[Section]:
    """What changed, in full; the head of the page has it in words."""
    from engine.reports.against import previous, since_sections  # they read records, as the next does

    before = other or previous(record, _root(record))
    for section in since_sections(record, before) if before else ():
        yield Folded(section.title, section.parts)


def _nights(record: "RunRecord") -> Iterator[Section]:
    for text in _night_sections(record):
        title, _, rest = text.partition("\n")
        yield Section(title.lstrip("# "), (rest.strip(),))


def _night_sections(record: "RunRecord") -> list[str]:
    from engine.reports.night import night_sections  # what it needs of the data's tables takes a while to import

    return night_sections(record, _root(record))


def _stages(record: "RunRecord", above: Sequence[Section]) -> Iterator[Section]:
    """The stages together, then each; what was told `above` is left out."""
    yield Section("The stages", tuple(_overview(record)))
    told = {part for section in above for part in section.parts}
    for decision in record.decisions:
        yield from _told(decision.stage, partial(_stage, record, decision, told), Folded)


def _overview(record: "RunRecord") -> Iterator[Part]:
    if not record.decisions:
        yield "No stage was finished."
        return
    from engine.reports.drawing import PLAIN
    from engine.reports.pictures import Bar, bars

    timed = [each for each in record.decisions if each.seconds is not None]
    made = [Bar(each.stage, (each.seconds,)) for each in timed if each.action != "reuse"]
    broken = unfinished(record)
    if broken and broken.seconds is not None:
        made.append(Bar(f"{broken.stage}, not finished", (broken.seconds,)))
    reused = [Bar(each.stage, (each.seconds,)) for each in timed if each.action == "reuse"]
    if made:
        yield bars("What took the time", made, [("took", PLAIN)], form=_took)
    if reused:
        yield bars("What reuse saved", reused, [("took when it was made", PLAIN)], form=_took)
    yield table(
        ["stage", "outcome", "took", "why", "key"],
        [
            [escape(each.stage), outcome(each), duration(each.seconds), escape(each.why, 400), _key(each)]
            for each in record.decisions
        ],
    )


def _stage(record: "RunRecord", decision: Decision, told: Collection[Part]) -> Iterator[Section]:
    """A stage's own page, without what was told above: its name, and whether it worked."""
    artifact = record.artifact(decision.stage)
    above = ("## ", f"**{TITLE}**")
    parts = [
        part
        for part in stage_parts(artifact, decision)
        if part not in told and not (isinstance(part, str) and part.startswith(above))
    ]
    numbers = headline(artifact, reused=decision.action == "reuse") if artifact else []
    summary = [outcome(decision).lower(), *(f"{label}: {shown}" for label, shown in numbers[:_HEADLINES])]
    yield Folded(decision.stage, tuple(parts), " · ".join(summary))


def _answers(record: "RunRecord") -> Iterator[Section]:
    evaluated = record.artifact("evaluate")
    part = policies.answers_part(evaluated, record.artifact("compare")) if evaluated else None
    yield Section("Answers", (part,) if part else ())


def _configured(record: "RunRecord") -> Iterator[Section]:
    yield Section("Configuration", (changes(record), f"The command that makes it again:\n\n{block(command(record))}"))
    yield Folded("All keys in force", (every_key(record),) if record.config else ())
    yield Section("Environment", (versions(record),))


def short_parts(record: "RunRecord") -> Iterator[str]:
    """The parts of the short page, what is asked first at the beginning."""
    yield f"# Run {escape(record.id)}"
    yield f"{_state(record)} Began {escape(began(record))}."
    if record.error:
        yield block(_beginning(record.error))
    yield from (f"**{question}** {answer}" for question, answer in brief(record))
    answer = answer_of(record.artifact)
    yield f"## {TITLE}\n\n{as_markdown(answer)}" if answer else ""
    yield _headlines(record)
    promoted = record.artifact("promote")
    if promoted is not None and promoted.readable:
        yield sections_to_markdown([Section("The gate, rule by rule", tuple(gate_parts(promoted)))]).rstrip()
    yield from _night_sections(record)
    yield _story(record)
    yield from _examples(record.artifact("evaluate"), record.artifact("compare"))
    yield f"## Configuration\n\n{changes(record)}"
    yield f"## Environment\n\n{versions(record)}"


def _beginning(text: str) -> str:
    return text if len(text) <= _ERROR_CHARACTERS else f"{text[:_ERROR_CHARACTERS]}…"


def _headlines(record: "RunRecord") -> str:
    found = [(decision, record.artifact(decision.stage)) for decision in reversed(record.decisions)]
    rows = [
        [escape(decision.stage), escape(label), escape(shown)]
        for decision, artifact in found
        if artifact is not None
        for label, shown in headline(artifact, reused=decision.action == "reuse")
    ]
    return f"## What came of it\n\n{table(['stage', '', 'number'], rows)}" if rows else ""


def _story(record: "RunRecord") -> str:
    """A list and no table: Prefect's pages cut off long cells."""
    if not record.decisions:
        return "No stage was finished."
    told = "\n".join(_told_of(each) for each in record.decisions)
    return f"## What the stages did\n\n{told}\n\nThe seconds of a reused stage are those it took when it was made."


def _told_of(decision: Decision) -> str:
    took = f" ({duration(decision.seconds)})" if decision.seconds is not None else ""
    place = f" In {code(decision.path)}." if decision.path else ""
    return f"- **{escape(decision.stage)}** · {outcome(decision)}{took}: {escape(decision.why)}.{place}"


def _examples(evaluated: Artifact | None, compared: Artifact | None) -> Iterator[str]:
    if evaluated is None or not headline(evaluated):
        return
    rates, answers = policies.rates(evaluated.metrics), policies.answers(evaluated, compared)
    yield f"## Before and after\n\n{rates}" if rates else ""
    yield f"## Some of their answers\n\n{answers}" if answers else ""


def _facts(record: "RunRecord") -> list[str]:
    took = [f"took {duration(record.seconds)}"] if record.seconds is not None else []
    return [f"profile {plain(record.profile)}", f"began {began(record)}", record.state, *took]


def _state(record: "RunRecord") -> str:
    took = f" It took {duration(record.seconds)}." if record.seconds is not None else ""
    return f"{_STATES.get(record.state) or escape(record.state)}{took}"


def _key(decision: Decision) -> str:
    return code(decision.key) if decision.key else "–"


def _took(seconds: object) -> str:
    return duration(seconds) if isinstance(seconds, int | float) else ""


def _item(line: str) -> str:
    """A sentence as an item of a list; one that is an item already belongs to the one before it."""
    return f"  - {escape(line.removeprefix('- '))}" if line.startswith("- ") else f"- {escape(line)}"


def _root(record: "RunRecord") -> Path:
    return record.folder.parent.parent
