"""One stage's page: what became of it, its headline numbers, everything else it recorded, and where it lies."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.errors import StoreError
from engine.reports.evaluation import evaluation_sections
from engine.reports.gate import DIFFERENCE, comparison_sections, gate_sections
from engine.reports.headlines import headline
from engine.reports.markdown import code, duration, escape, number, table
from engine.reports.measures import PAIRS, is_of_a_policy, shown
from engine.reports.training import monitor_sections
from engine.reports.verdict import TITLE, answer_behind, as_markdown, did_it_work
from engine.stage import Decision
from engine.store import Artifact

_OUTCOMES = {
    "reuse": "Reused",
    "run": "Made",
    "resume": "Made, from where an earlier attempt stopped",
    "skip": "Skipped",
}
_TOLD = ("intervals", "rules")  # mappings whose entries stand where they belong


def stage_report(artifact: Artifact | None, decision: Decision) -> str:
    """The page as markdown. Without an artifact it says what was decided and why."""
    parts = [f"## {escape(decision.stage)}", f"{outcome(decision)}: {escape(decision.why)}."]
    if artifact is not None:
        try:
            parts += _of_artifact(artifact, reused=decision.action == "reuse")
        except StoreError as error:
            parts.append(f"Its artifact cannot be read: {escape(error)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def outcome(decision: Decision) -> str:
    """What became of a stage, in a word or a few."""
    return _OUTCOMES[decision.action]


def _of_artifact(artifact: Artifact, *, reused: bool) -> Iterator[str]:
    metrics = artifact.metrics
    yield _did_it_work(artifact)
    yield table(["", "number"], [[label, escape(text)] for label, text in headline(artifact, reused=reused)])
    yield from _SECTIONS.get(artifact.stage, _no_sections)(artifact)
    for name, counts in metrics.items():
        if isinstance(counts, Mapping) and counts and name not in _TOLD:
            yield f"**{escape(name)}**"
            yield table(["", "count"], [[escape(key), escape(number(value))] for key, value in counts.items()])
    yield _others(metrics)
    yield _facts(artifact)


def _did_it_work(artifact: Artifact) -> str:
    if artifact.stage not in ("evaluate", "promote"):
        return ""
    answer = answer_behind(artifact) if artifact.stage == "promote" else did_it_work(artifact)
    return f"**{TITLE}**\n\n{as_markdown(answer)}" if answer else ""


def _no_sections(artifact: Artifact) -> Iterator[str]:
    return iter(())


_SECTIONS: dict[str, Callable[[Artifact], Iterator[str]]] = {
    "train": monitor_sections,
    "evaluate": evaluation_sections,
    "compare": comparison_sections,
    "promote": gate_sections,
}


def _others(metrics: Mapping[str, Any]) -> str:
    rows = [[code(name), escape(shown(metrics, name))] for name, value in metrics.items() if not _is_told(name, value)]
    return f"**All it recorded**\n\n{table(['name', 'value'], rows)}" if rows else ""


def _is_told(name: str, value: object) -> bool:
    """Whether another part of the page has it, or has it better."""
    parts = value if isinstance(value, list) else [value]
    nested = any(isinstance(part, Mapping) for part in parts)
    return nested or value in ("", []) or name in PAIRS or name.startswith(DIFFERENCE) or is_of_a_policy(name)


def _facts(artifact: Artifact) -> str:
    manifest = artifact.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    seconds = manifest.get("seconds")
    facts = [
        ["folder", code(artifact.path)],
        ["key", code(artifact.key)],
        ["files", f"{len(manifest['files'])}, {number(size)} bytes"],
        ["took", duration(seconds if isinstance(seconds, int | float) else None)],
        ["made", escape(manifest.get("sealed_at", "–"))],
    ]
    return f"**Where it is**\n\n{table(['', ''], facts)}"
