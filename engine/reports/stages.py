"""One stage's page: what became of it, its headline numbers, everything else it recorded, and where it lies."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from engine.errors import StoreError
from engine.reports.comparison import DIFFERENCE, comparison_parts
from engine.reports.data import download_parts, subsample_parts, tokenize_parts
from engine.reports.evaluation import evaluation_parts
from engine.reports.gate import gate_parts
from engine.reports.headlines import headline
from engine.reports.markdown import code, duration, escape, number, table
from engine.reports.measures import PAIRS, is_of_a_policy, shown
from engine.reports.page import Part
from engine.reports.policies import answers_part
from engine.reports.scores import reference_parts
from engine.reports.to_markdown import to_markdown
from engine.reports.training import sft_parts, train_parts
from engine.reports.verdict import TITLE, answer_behind, as_markdown, did_it_work
from engine.stage import Decision
from engine.store import Artifact

_OUTCOMES = {
    "reuse": "Reused",
    "run": "Made",
    "resume": "Made, from where an earlier attempt stopped",
    "skip": "Skipped",
}


def stage_parts(artifact: Artifact | None, decision: Decision, *, examples: int = 0) -> list[Part]:
    """A stage's page. Without an artifact it says what was decided and why.

    Args:
        examples: of how many prompts of each kind evaluate's page tells the answers; the run's page has all of them.
    """
    parts: list[Part] = [f"## {escape(decision.stage)}", f"{outcome(decision)}: {escape(decision.why)}."]
    if artifact is not None:
        try:
            parts += _of_artifact(artifact, examples, reused=decision.action == "reuse")
        except StoreError as error:
            parts.append(f"Its artifact cannot be read: {escape(error)}")
    return [part for part in parts if part]


def stage_report(artifact: Artifact | None, decision: Decision) -> str:
    """The page as markdown without its pictures."""
    return to_markdown(stage_parts(artifact, decision))


def outcome(decision: Decision) -> str:
    """What became of a stage, in a word or a few."""
    return _OUTCOMES[decision.action]


def _of_artifact(artifact: Artifact, examples: int, *, reused: bool) -> Iterator[Part]:
    metrics = artifact.metrics
    yield _did_it_work(artifact)
    yield table(["at a glance", ""], [[label, escape(text)] for label, text in headline(artifact, reused=reused)])
    yield from _own_parts(artifact, str(artifact.manifest["seal"]))
    if artifact.stage == "evaluate" and examples and (said := answers_part(artifact, per_kind=examples)):
        yield said
    yield _others(metrics)
    yield _facts(artifact)


def _did_it_work(artifact: Artifact) -> str:
    if artifact.stage not in ("evaluate", "promote"):
        return ""
    answer = answer_behind(artifact) if artifact.stage == "promote" else did_it_work(artifact)
    return f"**{TITLE}**\n\n{as_markdown(answer)}" if answer else ""


@lru_cache(maxsize=32)  # the stage's page and the run's show the same pictures
def _own_parts(artifact: Artifact, seal: str) -> tuple[Part, ...]:
    """What the stage's own module tells. `seal` tells the artifact from one that was made anew in its place."""
    return tuple(_PARTS[artifact.stage](artifact)) if artifact.stage in _PARTS else ()


_PARTS: dict[str, Callable[[Artifact], Iterator[Part]]] = {
    "download": download_parts,
    "tokenize": tokenize_parts,
    "subsample": subsample_parts,
    "sft": sft_parts,
    "reference": reference_parts,
    "train": train_parts,
    "evaluate": evaluation_parts,
    "compare": comparison_parts,
    "promote": gate_parts,
}


ORDER = tuple(_PARTS)  # the stages, as they follow each other


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
    count, size = len(manifest["files"]), sum(entry["bytes"] for entry in manifest["files"].values())
    seconds = manifest.get("seconds")
    facts = [
        ["folder", code(artifact.path)],
        ["key", code(artifact.key)],
        ["size", f"{number(size)} bytes in {count} file{'s' if count != 1 else ''}"],
        ["took", duration(seconds if isinstance(seconds, int | float) else None)],
        ["made", escape(str(manifest.get("sealed_at", "–")).replace("T", " "))],
    ]
    return f"**Where it is**\n\n{table(['', ''], facts)}"
