"""What became of the rows of a stage: how many were kept, how many were not, why, and some that were not."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.artifact import Artifact
from engine.errors import StoreError
from engine.reports.drawing import PLAIN
from engine.reports.markdown import escape, is_number, number
from engine.reports.page import Part

CUTS = {"prompt_cut": "prompts", "chosen_cut": "chosen responses", "rejected_cut": "rejected responses"}
# What the other reasons in a ledger mean, which take a row away.
MEANINGS = {
    "broken_csv": "the record is no valid CSV",
    "broken_json": "the line, or a text that should hold a list, is no valid JSON",
    "chosen_equals_rejected": "both responses are the same text",
    "empty_prompt": "the prompt is empty",
    "empty_response": "a response is empty",
    "image_content": "it holds pictures, sound or video",
    "misplaced_system": "a system message stands after the first turn",
    "missing_field": "the row lacks a column",
    "no_scores": "none of its answers has a score",
    "not_a_dialogue": "it does not end with a turn of the user and one of the assistant",
    "not_a_message": "something in its dialogue is no message",
    "not_a_string": "a column holds something other than text",
    "not_an_object": "the line is no JSON object",
    "not_unicode": "a text holds half a character",
    "null_field": "a column is null",
    "prompts_differ": "the two dialogues differ before their last turn, or the prompt beside them is no turn of theirs",
    "scores_contradict": "its chosen answer has the lower score",
    "scores_do_not_match": "it has more or fewer scores than answers",
    "tied_scores": "its answers are scored alike, so none is preferred",
    "too_few_answers": "it has fewer than two answers to compare",
    "tool_content": "it holds calls of tools, or what they returned",
    "two_systems": "it holds two different system messages",
    "unexpected_type": "a column holds something of another type than its format has there",
    "unknown_role": "a speaker is neither user, assistant nor system",
    "wrong_columns": "it has more or fewer fields than the header",
    "wrong_encoding": "a byte is not of the file's encoding",
    "equal_after_cut": "the two responses differ only in what the limit cuts away",
    "equal_tokens": "the two responses are the same tokens",
    "no_scored_token": "the prompt leaves no room for a response",
    "refused_by_template": "the template cannot write its messages",
    "duplicate": "an earlier row is the same pair",
    "contradiction": "another row prefers the same two responses the other way round",
}
_EXAMPLES = 2  # of each reason


def where_rows_went(title: str, artifact: Artifact, kept: Mapping[str, Any]) -> Iterator[Part]:
    """Bars of what was kept and of each reason in the ledger; what the reasons mean, with rows that it was said of.

    Args:
        kept: how many rows, by what became of them; what is no number is left out.

    Raises:
        DataError: the ledger cannot be read. One that is gone is made up for by the manifest.
    """
    from engine.reports.pictures import Bar, bars

    counts = reasons(artifact)
    rows = [Bar(name, [count]) for name, count in kept.items() if is_number(count) and count]
    rows += [Bar(_spoken(reason), [count]) for reason, count in counts.items()]
    if len(rows) > 1:
        yield bars(title, rows, [("rows", PLAIN)])
    if counts:
        examples = _examples(artifact, counts)
        yield "\n".join(_reason(reason, count, examples.get(reason, [])) for reason, count in counts.items())


def reasons(artifact: Artifact) -> dict[str, int]:
    """How many rows were taken away, by reason, the most frequent first. Raises DataError as `where_rows_went`."""
    counts: Counter[str] = Counter()
    try:
        for batch in _ledger(artifact, ["reason"]):
            for entry in batch["reason"].value_counts().to_pylist():
                counts[entry["values"] or ""] += entry["counts"]
    except StoreError:
        recorded = artifact.metrics.get("refused_by_reason")
        counts.update(recorded if isinstance(recorded, Mapping) else {})
    return {reason: count for reason, count in counts.most_common() if reason not in CUTS}


def _reason(reason: str, count: int, examples: Sequence[str]) -> str:
    meaning = MEANINGS.get(reason)
    line = f"- **{escape(_spoken(reason), 60)}** ({number(count)}){f': {meaning}' if meaning else ''}"
    return "\n".join([line, *(f"  - {example}" for example in examples)])


def _spoken(reason: str) -> str:
    return reason.replace("_", " ").strip() or "no reason"


def _examples(artifact: Artifact, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """The first rows of each reason, where they come from and what was seen, as markdown."""
    found: dict[str, list[str]] = {reason: [] for reason in counts}
    try:
        for batch in _ledger(artifact, ["source", "row", "reason", "detail"]):
            for row in batch.to_pylist():
                told = found.get(row["reason"])
                if told is not None and len(told) < _EXAMPLES:
                    told.append(_example(row))
            if all(len(told) >= min(_EXAMPLES, counts[reason]) for reason, told in found.items()):
                break
    except StoreError:
        return {}
    return found


def _example(row: Mapping[str, Any]) -> str:
    seen = row["detail"] if row["reason"] not in ("duplicate", "contradiction") else ""  # these say it of all alike
    where = f"row {number(row['row'])} of {escape(row['source'], 40)}"
    return f"{where}: {escape(seen, 120)}" if seen else where


def _ledger(artifact: Artifact, columns: Sequence[str]) -> Iterator[Any]:
    from engine.preferences.schema import LEDGER, read_batches

    yield from read_batches(artifact.file("ledger.parquet"), LEDGER, columns)
