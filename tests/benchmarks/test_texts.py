import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.texts import PROFILES, comparisons, write_lines


def test_the_same_seed_gives_the_same_pairs_and_fewer_are_the_first_of_more() -> None:
    some = list(comparisons(30))
    assert some == list(islice(comparisons(1_500), 30)) and len(some) == 30
    assert some != list(comparisons(30, seed=1))


@pytest.mark.parametrize("profile", PROFILES)
def test_texts_are_as_long_as_the_profile_says(profile: str) -> None:
    lengths = PROFILES[profile]
    for pair in comparisons(50, profile):
        assert lengths.prompt[0] <= len(pair["prompt"].split()) <= lengths.prompt[1]
        for side in ("chosen", "rejected"):
            assert lengths.answer[0] <= len(pair[side].split()) <= lengths.answer[1]


def test_no_two_pairs_are_the_same_and_no_answer_is_both() -> None:
    pairs = list(comparisons(2_000))
    assert len({tuple(pair.values()) for pair in pairs}) == 2_000
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


def test_a_few_words_are_most_of_the_text_and_most_words_are_rare() -> None:
    words = [word.strip(",.").lower() for pair in comparisons(300) for word in pair["chosen"].split()]
    often = sorted(Counter(words).values(), reverse=True)
    assert sum(often[:100]) > 0.3 * len(words)
    assert sum(count == 1 for count in often) > 0.3 * len(often)


def test_lines_are_the_pairs_as_json(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", 5)
    lines = (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(comparisons(5))
