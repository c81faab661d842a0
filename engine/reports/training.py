"""What was seen while a model was trained, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from engine.artifact import HANDED_DOWN
from engine.reports.evaluation import contents
from engine.reports.markdown import escape, is_number, number, table
from engine.store import Artifact

_NOTHING = "Nothing out of the ordinary was seen while it was trained."


def monitor_sections(artifact: Artifact) -> Iterator[str]:
    """What the monitor found, step by step, and whether it stopped the training; nothing where it did not watch."""
    seen = contents(artifact, HANDED_DOWN).get("monitor")
    if not isinstance(seen, Mapping):
        return
    findings = [each for each in seen.get("findings") or () if isinstance(each, Mapping)]
    rows = [[escape(number(each.get("step", "–"))), escape(_seen(each))] for each in findings]
    told = table(["step", "what was seen"], rows) or _NOTHING
    yield "\n\n".join(part for part in ("**While it was trained**", _stop(seen), told) if part)


def monitor_words(artifact: Artifact) -> list[str]:
    """The same as sentences of plain text; nothing where there was no trouble."""
    seen = contents(artifact, HANDED_DOWN).get("monitor")
    if not isinstance(seen, Mapping):
        return []
    findings = [each for each in seen.get("findings") or () if isinstance(each, Mapping)]
    told = [f"- at step {number(each.get('step', '–'))} of the training: {_seen(each)}" for each in findings]
    return [*(["Seen while it was trained:"] if told else []), *told, *filter(None, [_stop(seen)])]


def _seen(finding: Mapping[str, Any]) -> object:
    return finding.get("words") or finding.get("sign", "–")


def _stop(seen: Mapping[str, Any]) -> str:
    stopped, kept = seen.get("stopped_at"), seen.get("kept_step")
    if not is_number(stopped):
        return ""
    words = f"The training was stopped at step {number(stopped)}."
    if not is_number(kept):
        return words
    which = f"as it was after step {number(kept)}" if kept else "as it was before the first step"
    return f"{words} The adapter that was kept is the one {which}."
