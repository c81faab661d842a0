"""One comparison of answers to the same prompt, and the pairs that follow from it.

Every format comes down to this: turns of a prompt, and answers with scores. Whatever a row lacks to be one is a
`Refused`, which the reader of the row turns into its `Refusal`.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Literal

from engine.fingerprint import digest
from engine.preferences.ledger import Refusal

Message = dict[str, str]
Ranking = Literal["all", "best_worst"]


class Refused(Exception):  # noqa: N818 — it is no error: the row goes into the ledger
    """A row holds no comparison; says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


@dataclass(frozen=True)
class Pair:
    """One comparison of two answers.

    Attributes:
        pair_id: 16 hexadecimal digits over prompt, chosen and rejected: the same text is the same pair anywhere.
        prompt: messages of `role` and `content`: a system message first, if any; then user and assistant by turns,
            the user first and last.
    """

    pair_id: str
    prompt: list[Message]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Answer:
    """What follows the prompt, its last turn the assistant's; the higher `score` is better, None was not judged."""

    turns: list[Message]
    score: float | None


@dataclass(frozen=True)
class Comparison:
    """Answers to one prompt. Where `prompt` is empty, or holds no more than a system message, they are dialogues."""

    prompt: list[Message]
    answers: list[Answer]


def normalised(text: str) -> str:
    """`text` without what hardly makes another prompt: Unicode forms (NFKC), case, and the amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hexadecimal digits over the roles and the normalised contents of a prompt's messages."""
    return digest([[message["role"], normalised(message["content"])] for message in messages])[:16]


def number(value: object) -> float | None:
    """A score, given as a number or as text that is one; None for anything else, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def with_system(comparison: Comparison, text: str | None) -> Comparison:
    """The comparison under a system message that the row has in a column of its own; blank text is none.

    Raises:
        Refused: the turns begin with another system message.
    """
    if not text or not text.strip():
        return comparison
    turns = comparison.prompt or next((answer.turns for answer in comparison.answers), [])
    if not turns or turns[0]["role"] != "system":
        return Comparison([{"role": "system", "content": text}, *comparison.prompt], comparison.answers)
    if turns[0]["content"] != text:
        raise Refused("two_systems", f"a column says: {text}; the first turn says: {turns[0]['content']}")
    return comparison


def pairs(comparison: Comparison, ranking: Ranking = "all") -> list[Pair]:
    """Every better answer against every worse one, or the best against the worst; each pair once, the best first.

    Answers without a score and those of equal scores make no pair. An answer that cannot be compared (empty, or the
    same text as the other) costs its own pairs only.

    Raises:
        Refused: no pair is left.
    """
    if len(comparison.answers) == 2 and _is_ordered(*comparison.answers):  # nearly all there is, without a search
        first, second = comparison.answers
        return [compared([*comparison.prompt, *first.turns], [*comparison.prompt, *second.turns])]
    judged = sorted(_judged(comparison.answers), key=lambda entry: -entry[0])
    if len(judged) < 2:
        raise Refused("too_few_answers", f"{len(judged)} with a score, of {len(comparison.answers)}")
    drawn = list(combinations(judged, 2)) if ranking == "all" else [(judged[0], judged[-1])]
    ordered = [(better, worse) for (high, better), (low, worse) in drawn if high > low]
    if not ordered:
        raise Refused("tied_scores", f"{len(judged)} answers of the score {judged[0][0]:g}")
    found: dict[str, Pair] = {}
    refused = []
    for better, worse in ordered:
        try:
            pair = compared([*comparison.prompt, *better], [*comparison.prompt, *worse])
            found.setdefault(pair.pair_id, pair)
        except Refused as refusal:
            refused.append(refusal)
    if not found:
        raise refused[0]
    return list(found.values())


def _is_ordered(first: Answer, second: Answer) -> bool:
    return first.score is not None and second.score is not None and first.score > second.score


def _judged(answers: Sequence[Answer]) -> Iterator[tuple[float, list[Message]]]:
    return ((answer.score, answer.turns) for answer in answers if answer.score is not None)


def compared(better: Sequence[Message], worse: Sequence[Message]) -> Pair:
    """The pair of two dialogues, which must be the same up to the last turn, the assistant's.

    All before the last turn is the prompt: turns that one speaker takes in a row are one message there, as in Bai et
    al. 2022, "Training a Helpful and Harmless Assistant with RLHF". Texts are kept as they are.

    Raises:
        Refused: they are no such dialogues, or no comparison: empty, equal, or not Unicode.
    """
    alike = better[:-1] == worse[:-1]
    for side, turns in (("chosen", better), ("rejected", worse)):
        if not turns or turns[-1]["role"] != "assistant":
            raise Refused("not_a_dialogue", f"`{side}` does not end with a turn of the assistant")
        for turn in turns[-1:] if alike and turns is worse else turns:
            _check_unicode(turn["content"])
    if not alike:
        raise Refused("prompts_differ", f"{len(better)} turns and {len(worse)} turns, different before the last")
    chosen, rejected = better[-1]["content"], worse[-1]["content"]
    prompt = _prompt(better[:-1], chosen)
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            raise Refused("empty_response", f"`{side}`, to: {prompt[-1]['content']}")
    if chosen.strip() == rejected.strip():
        raise Refused("chosen_equals_rejected", chosen)
    return Pair(digest([prompt, chosen, rejected])[:16], prompt, chosen, rejected)


def _prompt(turns: Sequence[Message], chosen: str) -> list[Message]:
    messages = [dict(turn) for turn in turns] if len(turns) == 1 else _merged(turns)
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    spoken = messages[len(system) :]
    if any(message["role"] == "system" for message in spoken):
        raise Refused("misplaced_system", "a system message after the first turn")
    if [message["role"] for message in spoken[:1] + spoken[-1:]] != ["user", "user"]:
        raise Refused("not_a_dialogue", "the user speaks neither first nor before the last turn")
    if not spoken[-1]["content"].strip():
        raise Refused("empty_prompt", f"the last turn of the user; its chosen response: {chosen}")
    return [message for message in system if message["content"].strip()] + spoken


def _merged(turns: Sequence[Message]) -> list[Message]:
    return [
        {"role": role, "content": "\n\n".join(turn["content"] for turn in said if turn["content"])}
        for role, said in groupby(turns, key=lambda turn: turn["role"])
    ]


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("not_unicode", f"half a character: {text!r}") from None
