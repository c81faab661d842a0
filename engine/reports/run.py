"""A run's page: what each stage did and why, what came of it, and under which configuration."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.reports import policies
from engine.reports.gate import gate_sections
from engine.reports.headlines import headline
from engine.reports.markdown import block, code, duration, escape, table
from engine.reports.stages import outcome
from engine.reports.verdict import TITLE, answer_of, as_markdown

if TYPE_CHECKING:
    from engine.runs import RunRecord

_STATES = {
    "running": "Still running, or killed before it could say how it ended.",
    "completed": "Completed.",
    "failed": "Failed. What was sealed before is kept; the next run goes on from there.",
    "crashed": "Crashed. What was sealed before is kept; the next run goes on from there.",
    "cancelled": "Cancelled. What was sealed before is kept; the next run goes on from there.",
}


def run_report(record: "RunRecord") -> str:
    """The page as markdown, from the record and the artifacts it names; what is gone is left out."""
    return "\n\n".join(part for part in _parts(record) if part) + "\n"


def _parts(record: "RunRecord") -> Iterator[str]:
    yield f"# Run {escape(record.id)}"
    took = f" It took {duration(record.seconds)}." if record.seconds is not None else ""
    yield f"{_STATES.get(record.state) or escape(record.state)}{took} Started {escape(record.started_at)}."
    if record.error:
        yield block(record.error)
    yield _did_it_work(record)
    yield _headlines(record)
    yield _gate(record)
    yield from _nights(record)
    yield _story(record)
    yield _judged(record)
    yield _configuration(record)
    yield "## Environment"
    yield table(["", "version"], [[escape(name), escape(version)] for name, version in record.environment.items()])


def _did_it_work(record: "RunRecord") -> str:
    answer = answer_of(record.artifact)
    return f"## {TITLE}\n\n{as_markdown(answer)}" if answer else ""


def _gate(record: "RunRecord") -> str:
    promoted = record.artifact("promote")
    if promoted is None or not promoted.readable:
        return ""
    return "\n\n".join(["## The gate, rule by rule", *(part for part in gate_sections(promoted) if part)])


def _nights(record: "RunRecord") -> list[str]:
    from engine.reports.night import night_sections  # what it needs of the data's tables takes a while to import

    return night_sections(record, record.folder.parent.parent)


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
    rows = [
        [escape(d.stage), outcome(d), duration(d.seconds), escape(d.why), code(d.path) if d.path else "–"]
        for d in record.decisions
    ]
    if not rows:
        return "No stage was finished."
    note = "The seconds of a reused stage are those it took when it was made."
    return f"## What the stages did\n\n{table(['stage', 'outcome', 'took', 'why', 'folder'], rows)}\n\n{note}"


def _judged(record: "RunRecord") -> str:
    evaluated = record.artifact("evaluate")
    if evaluated is None or not headline(evaluated):
        return ""
    rates, answers = policies.rates(evaluated.metrics), policies.answers(evaluated, record.artifact("compare"))
    parts = ["## Before and after", rates] if rates else []
    parts += ["## Some of their answers", answers] if answers else []
    return "\n\n".join(parts)


def _configuration(record: "RunRecord") -> str:
    profile = f"Profile {code(record.profile)}"
    if record.overrides:
        profile += ", with " + ", ".join(code(override) for override in record.overrides)
    rows = [[code(key), code(json.dumps(value, ensure_ascii=False))] for key, value in record.changed.items()]
    changed = table(["key", "value"], rows) or "Everything has its default."
    return f"## Configuration\n\n{profile}. What differs from the defaults:\n\n{changed}"
