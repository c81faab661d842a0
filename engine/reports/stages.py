"""One stage's page: what became of it, its headline numbers, everything else it recorded, and where it lies."""

from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import StoreError
from engine.reports import policies
from engine.reports.headlines import headline
from engine.reports.markdown import code, duration, escape, number, table
from engine.stage import Decision
from engine.store import Artifact

_OUTCOMES = {
    "reuse": "Reused",
    "run": "Made",
    "resume": "Made, from where an earlier attempt stopped",
    "skip": "Skipped",
}


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
    yield table(["", "number"], [[label, escape(shown)] for label, shown in headline(artifact, reused=reused)])
    yield policies.rates(metrics)
    for name, counts in metrics.items():
        if isinstance(counts, Mapping) and counts:
            yield f"**{escape(name)}**"
            yield table(["", "count"], [[escape(key), escape(number(value))] for key, value in counts.items()])
    yield _others(metrics)
    yield _facts(artifact)


def _others(metrics: Mapping[str, Any]) -> str:
    rows = [
        [code(name), escape(number(value))]
        for name, value in metrics.items()
        if not isinstance(value, Mapping) and not policies.is_of_a_policy(name)
    ]
    return f"**All it recorded**\n\n{table(['name', 'value'], rows)}" if rows else ""


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
