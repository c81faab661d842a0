"""What to do about data of no known format: the settings to write, told from the names of its columns."""

import re
from collections.abc import Sequence

from engine.preferences.advice import ignoring, setting
from engine.preferences.ledger import shown
from engine.preferences.rows import Format, Row
from engine.preferences.shapes import TEXT, Column, Shape, shape_of, words

_MAPPED = ("prompt", "chosen", "rejected")
_USUAL = {
    "prompt": ("question", "query", "instruction", "input", "user", "problem", "context", "text"),
    "chosen": ("better", "good", "best", "preferred", "accepted", "winner", "win", "positive"),
    "rejected": ("worse", "bad", "worst", "dispreferred", "loser", "lose", "negative"),
}
_PROMPTS = ("prompt", "query", "instruction", "messages", "conversations")
_OTHERS = (*_PROMPTS, "system", "system_prompt", "input", "history", "id")
_VERDICT = re.compile(r"better|safer|winner|label|preference|choice", re.IGNORECASE)
_COLUMN = "COLUMN"
_TWO_ANSWERS = (
    "each row needs two answers to its prompt, or a list of answers with scores; "
    "one answer a row, with or without a label, is no comparison"
)
_BY_NUMBER = (
    "write each row with the better answer as `chosen` and the other as `rejected`: "
    "a column that says which of two is better is not read"
)
_AS_LISTS = (
    "write the data as Parquet or JSON lines, with the messages as lists; "
    "pandas: frame.to_json(path, orient='records', lines=True)"
)


def for_missing(sample: Sequence[Row], names: Sequence[str], lacking: Format) -> str:
    """What gives the data the columns that it lacks."""
    sought = [key for key, column in lacking.columns.items() if column.names[0] in lacking.lacks(names)]
    if lacking.given.intersection(sought):
        return "name columns that the data has in download.fields"
    answers = [key for key in _MAPPED[1:] if key not in names]
    texts = [name for name in names if any(shape_of(row.get(name)) in TEXT for row in sample)]
    free = [name for name in texts if name.casefold() not in (*_OTHERS, *_MAPPED)]
    guessed = {key: _guess(key, names) for key in answers}
    if answers and not all(guessed.values()):
        if any(_VERDICT.search(name) for name in names if name not in free) and len(free) >= len(answers):
            return _BY_NUMBER
        if len(free) < len(answers):
            return _TWO_ANSWERS
    if not set(names).intersection(_PROMPTS):
        guessed = {"prompt": _guess("prompt", names)} | guessed
        if not guessed["prompt"] and not free:
            return "add a column `prompt`; two whole dialogues as text have the marks Human: and Assistant: instead"
    return _settings(guessed, free)


def for_unreadable(each: Format, column: Column, row: Row) -> str:
    """What makes a column readable that is there."""
    name, shape = shown(column.name(row)), column.seen(row)
    key = next(key for key, other in each.columns.items() if other == column)
    if shape is Shape.BROKEN:
        return _AS_LISTS
    if shape is Shape.TURNS and key in _MAPPED[1:] and "prompt" in each.given:
        return "take download.fields.prompt away: whole conversations have their prompt in them"
    if name == "output" and shape in TEXT:
        return _TWO_ANSWERS
    written = f"write `{name}` as {words(column.shapes)}"
    if column.optional:
        return f"{written}, or leave the column out: {ignoring([*each.ignore, column.name(row)])}"
    return f"{written}, or name another column: {_field(key, _COLUMN)}" if key in _MAPPED else written


def _guess(key: str, names: Sequence[str]) -> str:
    usual = [name for word in _USUAL[key] for name in names if name.casefold() == word]
    return next(iter([*usual, *(name for name in names if key in re.split(r"[^a-z]+", name.casefold()))]), "")


def _settings(guessed: dict[str, str], free: Sequence[str]) -> str:
    lines = " ".join(_field(key, name or _COLUMN) for key, name in guessed.items())
    left = [name for name in free if name not in guessed.values()]
    among = f"; {_COLUMN} is one of {shown(', '.join(left))}" if left and not all(guessed.values()) else ""
    return f"say which columns hold what: {lines}{among}"


def _field(key: str, name: str) -> str:
    return setting(f"fields.{key}", name)
