"""Comparisons of made-up text, from a seed: as long as real ones, over a vocabulary as uneven as a language's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

WORDS = 30_000
MARK_ONE_IN = 8  # of the words, one ends in a comma or ends its sentence
_ONSETS = (
    "",
    *"bcdfghjklmnprstvwz",
    "bl",
    "br",
    "ch",
    "cr",
    "dr",
    "fl",
    "gr",
    "pl",
    "sh",
    "sl",
    "st",
    "str",
    "th",
    "tr",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou")
_CODAS = ("", "", "", "ck", "l", "ll", "m", "n", "nd", "ng", "nt", "r", "rd", "s", "st", "t")
_BLOCK = 1_000  # comparisons that are drawn at once


@dataclass(frozen=True)
class Profile:
    """How many words the prompt and each answer have, from the least to the most; all equally likely."""

    prompt: tuple[int, int]
    answer: tuple[int, int]


PROFILES = {
    "short": Profile(prompt=(13, 40), answer=(75, 140)),  # about 20 to 60 and 100 to 180 tokens of a BPE of 16,000
    "long": Profile(prompt=(380, 600), answer=(75, 140)),
}


def comparisons(count: int, profile: str = "short", seed: int = 0) -> Iterator[dict[str, str]]:
    """`count` of them as `prompt`, `chosen`, `rejected`; fewer are the first of more."""
    lengths, random = PROFILES[profile], np.random.default_rng(seed)
    words = _lexicon(random)
    frequency = 1 / (np.arange(len(words)) + 2.7)  # Zipf and Mandelbrot's law
    return islice(_drawn(words, frequency / frequency.sum(), lengths, random), count)


def write_lines(path: Path, count: int, profile: str = "short", seed: int = 0) -> None:
    """The same as a JSONL file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in comparisons(count, profile, seed))


def _lexicon(random: np.random.Generator) -> list[str]:
    """Distinct words of one to four syllables, in an order that says nothing of their length."""
    found: dict[str, None] = {}
    while len(found) < WORDS:
        onsets, vowels, codas = (random.choice(kind, (WORDS, 4)) for kind in (_ONSETS, _VOWELS, _CODAS))
        syllables = np.char.add(np.char.add(onsets, vowels), codas).tolist()
        lengths = random.choice([1, 2, 3, 4], WORDS, p=[0.3, 0.4, 0.2, 0.1]).tolist()
        found |= {"".join(parts[:length]): None for parts, length in zip(syllables, lengths, strict=True)}
    return list(found)[:WORDS]


def _drawn(
    words: list[str], frequency: npt.NDArray[np.float64], lengths: Profile, random: np.random.Generator
) -> Iterator[dict[str, str]]:
    ranges = {"prompt": lengths.prompt, "chosen": lengths.answer, "rejected": lengths.answer}
    while True:
        sizes = np.stack([random.integers(low, high + 1, _BLOCK) for low, high in ranges.values()], axis=1)
        said = random.choice(len(words), sizes.sum(), p=frequency)
        marks = random.choice(["", ",", "."], len(said), p=[1 - 1 / MARK_ONE_IN, *[0.5 / MARK_ONE_IN] * 2])
        spoken = [words[index] + mark for index, mark in zip(said.tolist(), marks.tolist(), strict=True)]
        ends = np.cumsum(sizes.ravel()).reshape(sizes.shape)
        for size, end in zip(sizes.tolist(), ends.tolist(), strict=True):
            texts = (
                " ".join(spoken[last - length : last]).capitalize() for length, last in zip(size, end, strict=True)
            )
            yield dict(zip(ranges, texts, strict=True))
