from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.comparisons import (
    Answer,
    Comparison,
    Message,
    Ranking,
    Refused,
    compared,
    normalised,
    number,
    pairs,
    prompt_id,
    with_system,
)


def turns(*contents: str, first: str = "user") -> list[Message]:
    roles = ["user", "assistant"] if first == "user" else ["system", *["user", "assistant"] * len(contents)]
    return [{"role": role, "content": text} for role, text in zip(roles * len(contents), contents, strict=False)]


def answers(**scores: float | None) -> Comparison:
    given = [Answer([{"role": "assistant", "content": text}], score) for text, score in scores.items()]
    return Comparison(turns("Who?"), given)


def drawn(comparison: Comparison, ranking: Ranking = "all") -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs(comparison, ranking)]


def reason(call: Any, *given: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*given)
    return caught.value.refusal.reason


def test_three_answers_are_three_pairs_the_better_one_chosen() -> None:
    assert drawn(answers(good=3, bad=1, fair=2)) == [("good", "fair"), ("good", "bad"), ("fair", "bad")]


def test_the_best_against_the_worst_is_one_pair() -> None:
    assert drawn(answers(good=3, bad=1, fair=2), "best_worst") == [("good", "bad")]


def test_answers_of_equal_scores_make_no_pair() -> None:
    assert drawn(answers(a=2, b=2, c=1)) == [("a", "c"), ("b", "c")]
    assert drawn(answers(a=2, b=2, c=1), "best_worst") == [("a", "c")]
    assert reason(pairs, answers(a=2, b=2)) == "tied_scores"
    assert reason(pairs, answers(a=2, b=2), "best_worst") == "tied_scores"


def test_an_answer_without_a_score_is_left_out() -> None:
    assert drawn(answers(a=2, b=None, c=1)) == [("a", "c")]
    assert reason(pairs, answers(a=2, b=None)) == "too_few_answers"
    assert reason(pairs, answers()) == "too_few_answers"


def test_an_answer_that_cannot_be_compared_costs_its_own_pairs_only() -> None:
    assert drawn(answers(**{"a": 3, " ": 2, "b": 1})) == [("a", "b")]
    assert reason(pairs, answers(**{"a": 3, " ": 2})) == "empty_response"


def test_the_same_pair_is_given_once() -> None:
    found = Comparison(turns("Who?"), [Answer([{"role": "assistant", "content": text}], score)
                                       for text, score in (("a", 3.0), ("b", 2.0), ("b", 1.0))])  # fmt: skip
    assert drawn(found) == [("a", "b")]


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.integers(0, 3) | st.none()), max_size=6))
def test_every_pair_prefers_a_higher_score_and_every_two_scores_are_compared(given_answers: list[Any]) -> None:
    judged = [Answer([{"role": "assistant", "content": text}], score) for text, score in given_answers]
    wanted = {(a, b) for a, s in given_answers for b, t in given_answers if None not in (s, t) and s > t and a != b}
    try:
        found = drawn(Comparison(turns("Who?"), judged))
    except Refused:
        found = []
    assert set(found) == wanted and len(found) == len(wanted)


@pytest.mark.parametrize(
    ("value", "score"),
    [(3, 3.0), ("4.5 ", 4.5), ("-1e2", -100.0), (True, None), ("N/A", None), (None, None), ("nan", None),
     (float("inf"), None), (10**400, None), ([4], None)],
)  # fmt: skip
def test_a_score_is_a_number_or_text_that_is_one(value: object, score: float | None) -> None:
    assert number(value) == score


def test_a_system_text_stands_before_the_turns_and_blank_text_does_not() -> None:
    assert pairs(with_system(answers(a=1, b=0), "Be brief."))[0].prompt[0] == {"role": "system", "content": "Be brief."}
    dialogues = Comparison([], [Answer(turns("Who?", "Me."), 1), Answer(turns("Who?", "You."), 0)])
    assert [turn["role"] for turn in pairs(with_system(dialogues, "Be brief."))[0].prompt] == ["system", "user"]
    for blank in (None, "", " \n"):
        assert with_system(dialogues, blank) is dialogues


def test_a_system_that_the_turns_have_too_is_kept_once_and_another_is_refused() -> None:
    begun = Comparison(turns("Be brief.", "Who?", first="system"), answers(a=1, b=0).answers)
    assert with_system(begun, "Be brief.") is begun
    assert reason(with_system, begun, "Be long.") == "two_systems"


def test_all_before_the_last_turn_is_the_prompt() -> None:
    pair = compared(turns("Be brief.", "Hi", "Hello", "Who?", "Me. ", first="system"),
                    turns("Be brief.", "Hi", "Hello", "Who?", "You.", first="system"))  # fmt: skip
    assert pair.prompt == turns("Be brief.", "Hi", "Hello", "Who?", first="system")
    assert (pair.chosen, pair.rejected) == ("Me. ", "You.")


def test_turns_of_one_speaker_in_a_row_are_one_message() -> None:
    begun = [*turns("a", "b"), {"role": "assistant", "content": "c"}, *turns("d")]
    pair = compared([*begun, *turns("", "x")[1:]], [*begun, *turns("", "y")[1:]])
    assert [message["content"] for message in pair.prompt] == ["a", "b\n\nc", "d"]


def test_a_blank_system_message_is_none() -> None:
    pair = compared(turns(" ", "Who?", "a", first="system"), turns(" ", "Who?", "b", first="system"))
    assert pair == compared(turns("Who?", "a"), turns("Who?", "b"))


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (turns("Hi", ""), turns("Hi", "A"), "empty_response"),
        (turns("Hi", "A"), turns("Hi", "A "), "chosen_equals_rejected"),
        (turns("Hi", "A"), turns("Ho", "B"), "prompts_differ"),
        (turns("Hi", "A", "More", "B"), turns("Hi", "A"), "prompts_differ"),
        (turns(" ", "A"), turns(" ", "B"), "empty_prompt"),
        (turns("Hi", "A", "Bye"), turns("Hi", "A", "Bye"), "not_a_dialogue"),
        ([], turns("Hi", "A"), "not_a_dialogue"),
        (turns("A", "A")[1:], turns("A", "B")[1:], "not_a_dialogue"),
        (turns("S", "U", "A", first="system")[::2], turns("S", "U", "B", first="system")[::2], "not_a_dialogue"),
        ([*turns("Hi", "Yo"), *turns("S", "U", "A", first="system")],
         [*turns("Hi", "Yo"), *turns("S", "U", "B", first="system")], "misplaced_system"),
        (turns("Hi\ud800", "A"), turns("Hi\ud800", "B"), "not_unicode"),
        (turns("Hi", "A"), turns("Hi", "\udfff"), "not_unicode"),
    ],
)  # fmt: skip
def test_dialogues_that_are_no_comparison_are_refused_by_name(better: Any, worse: Any, expected: str) -> None:
    assert reason(compared, better, worse) == expected


def test_a_pair_id_never_changes() -> None:
    assert compared(turns("Who?", "Me."), turns("Who?", "You.")).pair_id == "c791f74ca96db9ac"


def test_prompts_that_differ_in_case_width_and_space_have_the_same_id() -> None:
    variants = ["How do I  bake?", "how do i bake?\n", "ＨＯＷ do I bake?"]
    assert {normalised(text) for text in variants} == {"how do i bake?"}
    assert len({prompt_id([{"role": "user", "content": text}]) for text in variants}) == 1


def test_other_words_roles_and_turns_are_another_prompt() -> None:
    prompts = [[("user", "a b")], [("user", "ab")], [("system", "a b")], [("user", "a"), ("user", "b")], []]
    ids = {prompt_id([{"role": role, "content": text} for role, text in prompt]) for prompt in prompts}
    assert len(ids) == len(prompts)


def test_a_prompt_id_is_the_same_on_every_machine() -> None:
    assert prompt_id([{"role": "user", "content": "é好"}]) == "7dab18fb9e191fd3"
