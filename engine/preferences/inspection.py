"""What a source of comparisons holds, counted row by row: a look that keeps numbers and no texts."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.fingerprint import digest
from engine.preferences.formats import Pair, prompt_id
from engine.preferences.ledger import Refusal, shown
from engine.preferences.reading import Record
from engine.preferences.tokenizing import Limits

MARKED = "marks_in_prompt"
PERCENTILES = (50, 90, 99, 100)
_SIDES = ("prompt", "chosen", "rejected")
_KINDS = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U0003ffff]")
_LETTER = re.compile(r"[^\W\d_]")
_MOSTLY, _SOME = 0.5, 0.05  # of a pair's letters
_BATCH_PAIRS = 500
# How templates write a turn down: the pipeline's own would be written around it.
_MARKS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant)\|>|\[/?INST\]"
    r"|^### (?:Instruction|Response|Human|Assistant):|\A\s*(?:Human|User):|\n(?:Assistant|AI|Bot):\s*\Z",
    re.MULTILINE,
)

Lengths = tuple[int, int, int]  # of prompt, chosen and rejected
# The tokens of each pair, what frames them included; None for a pair that the template cannot write.
CountTokens = Callable[[Sequence[Pair]], Sequence[Lengths | None]]


def kind_of(name: str) -> str:
    """What kind of file a name says it is, in words: `JSON lines, gzipped`; empty where it says nothing."""
    plain = name.lower().removesuffix(".gz")
    kind = next((words for suffix, words in _KINDS.items() if plain.endswith(suffix)), "")
    return f"{kind}, gzipped" if kind and plain != name.lower() else kind


@dataclass
class Defect:
    """A way in which rows or pairs are not what they should be: how many, and the first of them."""

    count: int = 0
    source: str = ""
    row: int = 0
    seen: str = ""

    def add(self, record: Record, seen: str) -> None:
        """Counts one more."""
        if not self.count:
            self.source, self.row, self.seen = record.source, record.row, shown(seen)
        self.count += 1


class _Repeats:
    """Pairs that were there before, and pairs of one prompt that prefer the same two responses either way.

    As the subsample stage finds them: duplicates are the later ones, contradictions all that take part.
    """

    def __init__(self) -> None:
        self.duplicates, self.contradictions = Defect(), Defect()
        self._pairs: set[str] = set()
        self._questions: dict[str, tuple[int, int]] = {}

    def add(self, record: Record, pair: Pair) -> None:
        asked = pair.prompt[-1]["content"]
        if pair.pair_id in self._pairs:
            self.duplicates.add(record, asked)
        self._pairs.add(pair.pair_id)
        question = digest([prompt_id(pair.prompt), *sorted((pair.chosen, pair.rejected))])[:16]
        first, second = self._questions.get(question, (0, 0))
        one_sided = bool(first) != bool(second)
        turned = pair.chosen > pair.rejected
        self._questions[question] = first, second = (first + turned, second + (not turned))
        if first and second:
            self.contradictions.add(record, asked)
            self.contradictions.count += first + second - 1 if one_sided else 0  # those before, seen as such only now


class _Texts:
    """Lengths in characters and in tokens, and the letters, of every pair."""

    def __init__(self, count_tokens: CountTokens | None) -> None:
        self._count_tokens, self._uncounted = count_tokens, list[Pair]()
        self._characters, self._tokens = list[Lengths](), list[Lengths]()
        self._letters: list[tuple[int, int]] = []

    def add(self, pair: Pair) -> None:
        prompt = "\n".join(message["content"] for message in pair.prompt)
        self._characters.append((len(prompt), len(pair.chosen), len(pair.rejected)))
        self._letters.append(_letters("\n".join((prompt, pair.chosen, pair.rejected))))
        if self._count_tokens:
            self._uncounted.append(pair)
            if len(self._uncounted) == _BATCH_PAIRS:
                self._count()

    def _count(self) -> None:
        if self._count_tokens and self._uncounted:
            self._tokens += [each for each in self._count_tokens(self._uncounted) if each]
            self._uncounted = []

    def as_dict(self) -> dict[str, Any]:
        self._count()
        return {
            "characters": _percentiles(self._characters),
            "tokens": _percentiles(self._tokens) if self._count_tokens else None,
            "longer": _longer(self._characters),
            "languages": _languages(self._letters),
        }

    def cut(self, limits: Limits) -> float | None:
        """The share of the pairs of which the limits take something away, as the tokenize stage would."""
        self._count()
        most, most_of_prompt = limits.max_length, limits.max_prompt_length
        cut = [prompt > most_of_prompt or prompt + max(sides) > most for prompt, *sides in self._tokens]
        return sum(cut) / len(cut) if cut else None


class Inspection:
    """Counts rows and their pairs. Of each pair it keeps a few numbers and two digests.

    Args:
        count_tokens: where a tokenizer is at hand.
        limits: how many tokens a pair may have.
    """

    def __init__(self, count_tokens: CountTokens | None = None, limits: Limits | None = None) -> None:
        self.rows = self.pairs = 0
        self._limits = limits
        self._refusals: dict[str, Defect] = {}
        self._turns: Counter[int] = Counter()
        self._systems: Counter[str] = Counter()
        self._repeats, self._texts, self._marked = _Repeats(), _Texts(count_tokens), Defect()

    @property
    def refused(self) -> int:
        """Rows that hold no pair."""
        return sum(defect.count for defect in self._refusals.values())

    def add(self, record: Record, found: Iterable[Pair] | Refusal) -> None:
        """Counts one row, and what it was read as."""
        self.rows += 1
        if isinstance(found, Refusal):
            self._refusals.setdefault(found.reason, Defect()).add(record, found.detail)
            return
        for pair in found:
            self.pairs += 1
            self._turns[sum(message["role"] == "user" for message in pair.prompt)] += 1
            if pair.prompt[0]["role"] == "system":
                self._systems[digest(pair.prompt[0]["content"])] += 1
            self._repeats.add(record, pair)
            if _MARKS.search(asked := pair.prompt[-1]["content"]):
                self._marked.add(record, asked)
            self._texts.add(pair)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON-like values; lengths are null for percentiles of nothing, shares lie between 0 and 1.

        `longer` compares characters of the two responses, `languages` tells CJK letters (Chinese, Japanese, Korean)
        from others; `cut_share` is the share of pairs that the limits would cut.
        """
        return {
            "rows": self.rows,
            "pairs": self.pairs,
            "refused": self.refused,
            "refused_share": self.refused / self.rows if self.rows else 0.0,
            "defects": list(self._defects()),
            "turns": {str(turns): count for turns, count in sorted(self._turns.items())},
            "systems": {"pairs": self._systems.total(), "different": len(self._systems)},
            **self._texts.as_dict(),
            "cut_share": self._texts.cut(self._limits) if self._limits else None,
        }

    def _defects(self) -> Iterable[dict[str, Any]]:
        """The most frequent first, those of rows before those of pairs."""
        repeats = {"duplicate": self._repeats.duplicates, "contradiction": self._repeats.contradictions}
        of_pairs = repeats | {MARKED: self._marked}
        for of, whole, defects in (("rows", self.rows, self._refusals), ("pairs", self.pairs, of_pairs)):
            for kind, defect in sorted(defects.items(), key=lambda item: -item[1].count):
                if defect.count:
                    yield {"kind": kind, "of": of, "share": defect.count / whole, **asdict(defect)}


def _percentiles(lengths: Sequence[Lengths]) -> dict[str, dict[str, int]] | None:
    """By side, each of `PERCENTILES` as a length that occurs; 100 is called max."""
    if not lengths:
        return None
    found = np.percentile(np.array(lengths), PERCENTILES, axis=0, method="inverted_cdf").astype(int).tolist()
    names = ["max" if each == 100 else str(each) for each in PERCENTILES]
    return {side: dict(zip(names, [row[at] for row in found], strict=True)) for at, side in enumerate(_SIDES)}


def _longer(lengths: Sequence[Lengths]) -> dict[str, float] | None:
    if not lengths:
        return None
    counts = Counter((chosen > rejected) - (chosen < rejected) for _, chosen, rejected in lengths)
    return {name: counts[sign] / len(lengths) for name, sign in (("chosen", 1), ("rejected", -1), ("neither", 0))}


def _letters(text: str) -> tuple[int, int]:
    """How many CJK letters a text has, and how many letters in all."""
    cjk = len(text) - len(_CJK.sub("", text))
    return cjk, len(_LETTER.findall(text))


def _languages(letters: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """The share of CJK among all letters, and the shares of pairs that are mostly, partly and hardly written in it."""
    if not letters:
        return None
    shares = [cjk / every if every else 0.0 for cjk, every in letters]
    mostly, some = sum(share >= _MOSTLY for share in shares), sum(share >= _SOME for share in shares)
    every = sum(count for _, count in letters)
    whole = len(letters)
    return {
        "cjk": sum(cjk for cjk, _ in letters) / every if every else 0.0,
        "mostly_cjk": mostly / whole,
        "mixed": (some - mostly) / whole,
        "other": (whole - some) / whole,
    }
