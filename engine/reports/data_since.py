"""How the data of a run moved since another one: which pairs are new or gone, and how the shares of sources moved."""

from engine.artifact import Artifact
from engine.preferences.drift import THRESHOLD, Drift, changed_pairs, drifts
from engine.reports.markdown import escape, number, share, table
from engine.reports.page import Part

_SHOWN = 10
_NOT_KNOWN = "How many pairs are new and how many are gone is not known: the table of one of the two was removed."
_NO_TALLY = "Shares by source and length are not known: one of the two was made before they were recorded."
_NOTE = (
    "The distance is the share of pairs (of responses, by length) that would have to be others for the two to be "
    f"alike; from {share(THRESHOLD)} on, and above what chance explains, the data moved, unless new sources are all "
    "that changed. It changes no verdict."
)


def data_parts(then: Artifact | None, now: Artifact | None) -> list[Part]:
    """What there is to say of two artifacts of tokenize, whole or pruned.

    Returns:
        Nothing where they have the same content, or where nothing is left of one of them.
    """
    if then is None or now is None or then.digest == now.digest:
        return []
    parts: list[Part] = [f"{_counts(then, now)} Pairs then and now: {_pairs(then)} and {_pairs(now)}."]
    found = drifts(then.metrics, now.metrics)
    if not found:
        return [*parts, _NO_TALLY]
    parts += [table(["", "distance", "verdict", "by chance alone"], [_line(drift) for drift in found]), _NOTE]
    parts += [
        table([drift.dimension, "then", "now", "change"], [_share(*entry) for entry in drift.shares[:_SHOWN]])
        for drift in found
        if drift.distance > 0
    ]
    return parts


def data_words(then: Artifact | None, now: Artifact | None) -> str:
    """The same in a sentence of plain text; empty where they have the same content or nothing is left of one."""
    if then is None or now is None or then.digest == now.digest:
        return ""
    moved = [f"by {drift.dimension} they {drift.word}" for drift in drifts(then.metrics, now.metrics) if drift.moved]
    counted = _changed(then, now)
    pairs = "how many pairs are new is not known" if counted is None else _new_and_gone(*counted)
    return f"Other data: {'; '.join([pairs, *moved])}."


def _changed(then: Artifact, now: Artifact) -> tuple[int, int] | None:
    try:
        return changed_pairs(then, now)
    except (OSError, ValueError):  # a table is broken
        return None


def _counts(then: Artifact, now: Artifact) -> str:
    counts = _changed(then, now)
    return _NOT_KNOWN if counts is None else f"New pairs: {counts[0]:,}. Gone: {counts[1]:,}."


def _new_and_gone(new: int, gone: int) -> str:
    if not new and not gone:
        return "the same pairs, in other tokens or another order"
    return f"{new:,} new {'pair' if new == 1 else 'pairs'}, {gone:,} gone"


def _line(drift: Drift) -> list[str]:
    word = f"**{drift.word}**" if drift.moved else escape(drift.word, 120)
    return [f"by {drift.dimension}", share(drift.distance), word, f"about {share(drift.by_chance)}"]


def _share(name: str, then: float, now: float) -> list[str]:
    return [escape(name, 80), share(then), share(now), f"{100 * (now - then):+.1f} points"]


def _pairs(artifact: Artifact) -> str:
    return escape(number(artifact.metrics.get("pairs", "–")))
