"""Examples for the sft stage: a conversation and the response to learn, from files of the usual columns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import DataError
from engine.preferences.ledger import Ledger, Refusal, shown
from engine.preferences.reading import SUFFIXES, Record
from engine.preferences.templates import Messages


@dataclass(frozen=True)
class Instruction:
    """One example: messages that end with the user's, and the response; and the source and row it was read from."""

    prompt: Messages
    response: str
    source: str = ""
    row: int = 0


def _alpaca(row: Mapping[str, str]) -> Instruction:
    question = "\n".join(part for part in (row["instruction"], row.get("input") or "") if part.strip())
    return Instruction([{"role": "user", "content": question}], row["output"])


def _plain(row: Mapping[str, str]) -> Instruction:
    return Instruction([{"role": "user", "content": row["prompt"]}], row["response"])


# Columns → how a row of them reads. An `input` beside instruction and output is put on a line of its own.
FORMATS: dict[tuple[str, str], Callable[[Mapping[str, str]], Instruction]] = {
    ("instruction", "output"): _alpaca,
    ("prompt", "response"): _plain,
}


def is_local(name: str) -> bool:
    """Whether sft data of that name is a path or a glob, and not `owner/name` on the Hub, which may hold dots."""
    if name.startswith((".", "/", "~")) or any(mark in name for mark in "*?[") or Path(name).exists():
        return True
    owner, _, rest = name.partition("/")
    return name.lower().removesuffix(".gz").endswith(SUFFIXES) or not owner or not rest or "/" in rest


def usable(records: Iterable[Record], ledger: Ledger) -> Iterator[Instruction]:
    """The examples of one source, in its order; rows that hold none go into the ledger. Raises as `recognise`."""
    columns = None
    for record in records:
        found: Instruction | Refusal
        if isinstance(record.content, dict):
            columns = columns or recognise(record.source, list(record.content))
            found = instruction(record.content, columns)
        else:
            found = record.content
        if isinstance(found, Instruction):
            yield replace(found, source=record.source, row=record.row)
        else:
            ledger.add(found.reason, source=record.source, row=record.row, detail=found.detail)


def recognise(source: str, columns: Sequence[str]) -> tuple[str, str]:
    """The columns to read. Raises DataError when no known ones are among them."""
    for known in FORMATS:
        if set(known) <= set(columns):
            return known
    raise DataError(
        "the sft data has none of the known columns",
        expected=" or ".join(" and ".join(known) for known in FORMATS),
        found=shown(", ".join(columns)) or "no columns",
        where=shown(source),
    )


def instruction(row: Mapping[str, object], columns: tuple[str, str]) -> Instruction | Refusal:
    """The example in a row, or why there is none."""
    for name in (*columns, *(("input",) if row.get("input") is not None else ())):
        if not isinstance(row.get(name), str):
            return Refusal("null_field" if row.get(name) is None else "not_a_string", f"`{name}`")
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    if any("\ud800" <= character <= "\udfff" for name in texts for character in texts[name]):
        return Refusal("not_unicode", "half a character")
    found = FORMATS[columns](texts)
    if not found.prompt[0]["content"].strip() or not found.response.strip():
        return Refusal("empty_prompt" if found.response.strip() else "empty_response", f"columns {', '.join(columns)}")
    return found
