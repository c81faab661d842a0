"""The formats that comparisons come in, and what each row means: messages for the prompt, texts for the two responses.

To add a format, write a function that takes the texts of its columns and returns a `Pair` or a `Refusal`, and give it
a line in `FORMATS`.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from engine.errors import DataError
from engine.fingerprint import digest
from engine.preferences.ledger import Refusal, shown

Message = dict[str, str]


@dataclass(frozen=True)
class Pair:
    """One comparison.

    Attributes:
        pair_id: 16 hexadecimal digits over prompt, chosen and rejected: the same text is the same pair anywhere.
        prompt: messages of `role` (user or assistant) and `content`; the last one is the user's.
    """

    pair_id: str
    prompt: list[Message]
    chosen: str
    rejected: str


def normalised(text: str) -> str:
    """`text` without what hardly makes another prompt: Unicode forms (NFKC), case, and the amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hexadecimal digits over the roles and the normalised contents of a prompt's messages."""
    return digest([[message["role"], normalised(message["content"])] for message in messages])[:16]


@dataclass(frozen=True)
class Format:
    """A named way of writing a comparison down.

    Attributes:
        columns: the columns it needs, in the order in which `pair` takes their texts.
        pair: makes the pair of a row whose columns are all there and are all text.
        mark: what the text of some row must match for the columns to have this meaning.
    """

    name: str
    columns: tuple[str, ...]
    pair: Callable[..., Pair | Refusal]
    mark: re.Pattern[str] | None = None

    def read(self, row: Mapping[str, object]) -> Pair | Refusal:
        """The pair that a row holds, or why it holds none."""
        texts = []
        for column in self.columns:
            value = row.get(column)
            if not isinstance(value, str):
                return _no_text(row, column)
            if not _is_unicode(value):
                return Refusal("not_unicode", f"`{column}` holds half a character: {value!r}")
            texts.append(value)
        return self.pair(*texts)


def texts(prompt: str, chosen: str, rejected: str) -> Pair | Refusal:
    """A question and two answers, each a text of its own, kept as it is."""
    if not prompt.strip():
        return Refusal("empty_prompt", f"its chosen response: {chosen}")
    return _pair([{"role": "user", "content": prompt}], chosen, rejected)


def dialogues(chosen: str, rejected: str) -> Pair | Refusal:
    """Two whole dialogues in the manner of hh-rlhf, which must be the same up to the last turn, the assistant's.

    Turns are stripped; in the prompt, turns that one speaker takes in a row are one message. The manner is that of
    Bai et al. 2022, "Training a Helpful and Harmless Assistant with RLHF", as published in Anthropic/hh-rlhf.
    """
    turns, others = _turns(chosen), _turns(rejected)
    for side, found in (("chosen", turns), ("rejected", others)):
        if not found or found[-1]["role"] != "assistant":
            return Refusal("not_a_dialogue", f"`{side}` does not end with a turn of the assistant")
    if turns[:-1] != others[:-1]:
        return Refusal("prompts_differ", f"{len(turns)} turns and {len(others)} turns, different before the last")
    prompt = [
        {"role": role, "content": "\n\n".join(turn["content"] for turn in said if turn["content"])}
        for role, said in groupby(turns[:-1], key=lambda turn: turn["role"])
    ]
    if [message["role"] for message in prompt[:1] + prompt[-1:]] != ["user", "user"]:
        return Refusal("not_a_dialogue", "the user speaks neither first nor before the last turn")
    if not prompt[-1]["content"]:
        return Refusal("empty_prompt", f"the last turn of the user; its chosen response: {turns[-1]['content']}")
    return _pair(prompt, turns[-1]["content"], others[-1]["content"])


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

FORMATS = (
    Format("query/chosen/rejected", ("query", "chosen", "rejected"), texts),
    Format("prompt/chosen/rejected", ("prompt", "chosen", "rejected"), texts),
    Format("hh-rlhf", ("chosen", "rejected"), dialogues, mark=_TURN),
)


def candidates(prompt: str = "", chosen: str = "", rejected: str = "") -> list[Format]:
    """The formats to look for, with the columns that a field map renames; an empty name keeps the format's own."""
    answers = (chosen or "chosen", rejected or "rejected")
    if prompt:
        return [Format("field map", (prompt, *answers), texts)]
    return [Format(known.name, (*known.columns[:-2], *answers), known.pair, known.mark) for known in FORMATS]


def recognise(source: str, sample: Sequence[Mapping[str, object]], known: Sequence[Format] = FORMATS) -> Format:
    """The first format whose columns are all in the sample of rows and whose mark is in one of its texts.

    Raises:
        DataError: none fits; names the columns there are, those that were looked for, and the nearest.
    """
    columns = list(dict.fromkeys(column for row in sample for column in row))
    for each in known:
        if set(each.columns) <= set(columns) and _marked(each, sample):
            return each
    missing, near = _nearest(columns, known)
    raise DataError(
        f"the column `{missing}` is missing" + (f"; did you mean `{shown(near)}`?" if near else ""),
        expected=" or ".join(f"columns {', '.join(each.columns)} ({each.name})" for each in known),
        found=shown(", ".join(columns)) or "no columns",
        where=shown(source),
        fix="say which columns hold what: --set download.fields.prompt=question, and so for .chosen and .rejected",
    )


def _nearest(columns: Sequence[str], known: Sequence[Format]) -> tuple[str, str]:
    """The missing column of the format that lacks least, and the column that seems to be it, or an empty name."""
    lacking = sorted(([name for name in each.columns if name not in columns] for each in known), key=len)
    lacking = [names for names in lacking if names] or [list(known[0].columns)]
    for name in (name for names in lacking for name in names):
        for match in difflib.get_close_matches(name, columns, 1):
            return name, match
    return lacking[0][0], ""


def _marked(each: Format, sample: Sequence[Mapping[str, object]]) -> bool:
    if each.mark is None:
        return True
    found = (row.get(column) for row in sample for column in each.columns)
    return any(isinstance(text, str) and each.mark.search(text) for text in found)


def _no_text(row: Mapping[str, object], column: str) -> Refusal:
    if column not in row:
        return Refusal("missing_field", f"`{column}`; the row has {', '.join(row) or 'no fields'}")
    if row[column] is None:
        return Refusal("null_field", f"`{column}`")
    kind = type(row[column]).__name__
    return Refusal("not_a_string", f"`{column}` is of type {kind}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _turns(text: str) -> list[Message]:
    before, *parts = _TURN.split(text)
    if before.strip():
        return []
    return [
        {"role": _ROLES[who], "content": content.strip()} for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _pair(prompt: list[Message], chosen: str, rejected: str) -> Pair | Refusal:
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            return Refusal("empty_response", f"`{side}`, to: {prompt[-1]['content']}")
    if chosen.strip() == rejected.strip():
        return Refusal("chosen_equals_rejected", chosen)
    return Pair(digest([prompt, chosen, rejected])[:16], prompt, chosen, rejected)
