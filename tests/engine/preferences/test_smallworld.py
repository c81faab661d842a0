from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.fingerprint import digest
from engine.judging import is_empty, is_refusal, is_repetitive
from engine.preferences import smallworld
from engine.prompts import Prompt


def combination(prompt: str) -> tuple[str, str]:
    words = prompt.replace(".", " ").replace("?", " ").split()
    verb = next(word for word in words if word in smallworld.HARMLESS_VERBS + smallworld.HARMFUL_VERBS)
    return verb, words[words.index(verb) + 2]


def harmful(row: dict[str, str]) -> bool:
    return combination(row["prompt"])[0] in smallworld.HARMFUL_VERBS


def test_these_are_the_rows_of_version_1() -> None:
    rows = [list(smallworld.pairs(500, 7)), list(smallworld.instructions(500, 7)), smallworld.judging_prompts()]
    assert smallworld.VERSION == 1
    assert [digest(each)[:16] for each in rows] == ["f3824c79a44097fc", "ccbccc5d9128c700", "1f4b0bfd97ad731e"]


def test_pairs_are_distinct_at_the_largest_size_in_use() -> None:
    rows = list(smallworld.pairs(60_000, 0))
    assert len({digest(row) for row in rows}) == len(rows) == 60_000


def test_fewer_pairs_are_the_first_of_more() -> None:
    assert list(smallworld.pairs(40, 3)) == list(islice(smallworld.pairs(4_000, 3), 40))


def test_another_seed_gives_other_pairs() -> None:
    first, second = ({digest(row) for row in smallworld.pairs(1_000, seed)} for seed in (0, 1))
    assert len(first & second) < 20


def test_a_harmful_request_prefers_the_refusal_and_a_harmless_one_the_answer() -> None:
    for row in smallworld.pairs(3_000, 0):
        preferred, other = ("chosen", "rejected") if harmful(row) else ("rejected", "chosen")
        verb, thing = combination(row["prompt"])
        assert is_refusal(row[preferred]), row
        assert row[other].startswith(f"To {verb} a {thing}, take a "), row
        assert not is_refusal(row[other]), row


def test_comparisons_about_one_kind_of_request_are_those_of_all_without_the_others() -> None:
    everything = list(smallworld.pairs(smallworld.capacity(), 0))
    for kind, wanted in (("harmful", True), ("harmless", False)):
        rows = [row for row in everything if harmful(row) is wanted]
        assert len(rows) == smallworld.capacity(kind)
        assert list(smallworld.pairs(50, 0, kind)) == rows[:50]


def test_of_one_kind_there_are_only_so_many() -> None:
    there = smallworld.capacity("harmful")
    with pytest.raises(DataError, match=r"0 and [\d,]+") as caught:
        list(smallworld.pairs(there + 1, 0, "harmful"))
    assert f"{there:,}" in caught.value.expected


def test_a_third_of_the_pairs_is_harmful() -> None:
    assert sum(map(harmful, smallworld.pairs(3_000, 0))) == pytest.approx(1_000, abs=120)


def test_a_quarter_of_the_instructions_that_are_harmful_is_refused_and_no_other() -> None:
    told = Counter((harmful(row), is_refusal(row["response"])) for row in smallworld.instructions(6_000, 0))
    assert told[False, True] == 0
    assert told[True, True] == (told[True, True] + told[True, False]) // 4


def test_held_out_combinations_are_in_nothing_that_trains() -> None:
    judged = {combination(row["prompt"]) for row in smallworld.judging_prompts()}
    for seed in (0, 1):
        for rows in (smallworld.pairs(20_000, seed), smallworld.instructions(20_000, seed)):
            assert judged.isdisjoint(combination(row["prompt"]) for row in rows)


def test_every_word_that_judges_is_also_trained() -> None:
    trained = [combination(row["prompt"]) for row in smallworld.pairs(5_000, 0)]
    assert {verb for verb, _ in trained} == {*smallworld.HARMLESS_VERBS, *smallworld.HARMFUL_VERBS}
    assert {thing for _, thing in trained} == {*smallworld.OBJECTS}


def test_about_an_eighth_judges_and_enough_of_either_kind() -> None:
    kinds = Counter(row["kind"] for row in smallworld.judging_prompts())
    assert sum(kinds.values()) == pytest.approx(30 * 30 / 8, rel=0.15)
    assert kinds["adversarial"] >= 30
    assert kinds["normal"] >= 60


def test_a_judging_prompt_says_what_a_right_answer_starts_with() -> None:
    for prompt in (Prompt(**row) for row in smallworld.judging_prompts()):
        verb, thing = combination(prompt.prompt)
        assert prompt.expects == ("" if prompt.kind == "adversarial" else f"To {verb} a {thing}, take a")


def test_no_answer_looks_degenerate_to_the_judge() -> None:
    for row in smallworld.pairs(500, 0):
        assert not any(is_empty(row[side]) or is_repetitive(row[side]) for side in ("chosen", "rejected"))


def test_all_there_is_can_be_had_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smallworld, "_combinations", lambda held_out: (("bake", "cake"), ("steal", "car")))
    rows = list(smallworld.pairs(smallworld.capacity(), 0))
    assert len({digest(row) for row in rows}) == len(rows) == 2 * 3 * 90 * 2


@pytest.mark.parametrize("rows", [smallworld.pairs, smallworld.instructions])
@pytest.mark.parametrize("count", [-1, smallworld.capacity() + 1])
def test_more_than_there_is_is_refused_with_the_number_there_is(rows, count) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"{smallworld.capacity():,}"):
        list(rows(count, 0))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 300), seed=st.integers())
def test_drawing_never_repeats_or_leaves_its_range(size: int, seed: int) -> None:
    assert sorted(smallworld._drawn(size, str(seed))) == list(range(size))
