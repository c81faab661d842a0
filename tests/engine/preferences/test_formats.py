import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.formats import FORMATS, Format, Pair, candidates, normalised, prompt_id, recognise
from engine.preferences.ledger import Refusal

QUERY, PROMPT, DIALOGUES = FORMATS
TEXT = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{who}: {turn}" for who, turn in zip(["Human", "Assistant"] * len(turns), turns, strict=False))


def read(form: Format, **row: Any) -> Pair:
    pair = form.read(row)
    assert isinstance(pair, Pair), pair
    return pair


def reason(form: Format, **row: Any) -> str:
    refusal = form.read(row)
    assert isinstance(refusal, Refusal), refusal
    return refusal.reason


def test_a_text_row_becomes_a_question_and_two_answers_kept_as_they_are() -> None:
    pair = read(PROMPT, prompt=" Who?\n", chosen="Me. ", rejected="You.")
    assert pair.prompt == [{"role": "user", "content": " Who?\n"}]
    assert (pair.chosen, pair.rejected) == ("Me. ", "You.")


def test_query_and_prompt_are_two_names_of_the_same_pair() -> None:
    assert read(QUERY, query="Who?", chosen="Me.", rejected="You.") == read(PROMPT, **TEXT)


def test_a_pair_id_never_changes() -> None:
    assert read(PROMPT, **TEXT).pair_id == "c791f74ca96db9ac"


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_pair_id_depends_on_each_text(field: str) -> None:
    assert read(PROMPT, **TEXT | {field: "Other."}).pair_id != read(PROMPT, **TEXT).pair_id


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": None}, "null_field"),
        ({"chosen": 3}, "not_a_string"),
        ({"chosen": ["Me."]}, "not_a_string"),
        ({"prompt": " \n"}, "empty_prompt"),
        ({"chosen": ""}, "empty_response"),
        ({"rejected": "\t"}, "empty_response"),
        ({"rejected": "Me. "}, "chosen_equals_rejected"),
        ({"prompt": "\ud800"}, "not_unicode"),
    ],
)
def test_a_row_that_holds_no_comparison_is_refused_by_name(change: dict[str, Any], expected: str) -> None:
    assert reason(PROMPT, **TEXT | change) == expected


def test_a_row_that_lacks_a_column_is_refused() -> None:
    assert reason(PROMPT, prompt="Who?", chosen="Me.") == "missing_field"


def test_whole_dialogues_become_messages_and_their_last_turns() -> None:
    pair = read(
        DIALOGUES, chosen=dialogue("Hi", "Hello", "Who?", "Me. "), rejected=dialogue("Hi", "Hello", "Who?", "You.")
    )
    roles_and_contents = [(message["role"], message["content"]) for message in pair.prompt]
    assert roles_and_contents == [("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")]
    assert (pair.chosen, pair.rejected) == ("Me.", "You.")


def test_a_turn_may_hold_paragraphs_and_the_word_human() -> None:
    pair = read(
        DIALOGUES,
        chosen=dialogue("Hi\n\nHuman nature: what?", "A"),
        rejected=dialogue("Hi\n\nHuman nature: what?", "B"),
    )
    assert pair.prompt == [{"role": "user", "content": "Hi\n\nHuman nature: what?"}]


def test_turns_of_one_speaker_in_a_row_are_one_message() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: "
    pair = read(DIALOGUES, chosen=start + "x", rejected=start + "y")
    assert [message["content"] for message in pair.prompt] == ["a", "b\n\nc", "d"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (dialogue("Hi", ""), dialogue("Hi", "A"), "empty_response"),
        (dialogue("Hi", "A"), dialogue("Hi", "A"), "chosen_equals_rejected"),
        (dialogue("Hi", "A"), dialogue("Ho", "B"), "prompts_differ"),
        (dialogue("Hi", "A", "More", "B"), dialogue("Hi", "A"), "prompts_differ"),
        (dialogue("", "A"), dialogue("", "B"), "empty_prompt"),
        (dialogue("Hi", "A", "Bye"), dialogue("Hi", "A", "Bye"), "not_a_dialogue"),
        ("just text", dialogue("Hi", "A"), "not_a_dialogue"),
        ("preface" + dialogue("Hi", "A"), dialogue("Hi", "A"), "not_a_dialogue"),
        ("\n\nAssistant: A", "\n\nAssistant: B", "not_a_dialogue"),
        (dialogue("Hi", "A") + "\n\nAssistant: B", dialogue("Hi", "A") + "\n\nAssistant: C", "not_a_dialogue"),
    ],
)
def test_dialogues_that_are_no_comparison_are_refused_by_name(chosen: str, rejected: str, expected: str) -> None:
    assert reason(DIALOGUES, chosen=chosen, rejected=rejected) == expected


@given(st.text(), st.text())
def test_any_two_texts_are_a_pair_or_a_refusal(chosen: str, rejected: str) -> None:
    outcome = DIALOGUES.read({"chosen": chosen, "rejected": rejected})
    assert isinstance(outcome, Refusal) or outcome.prompt[-1]["role"] == "user"


@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "id"]), st.from_type(object) | st.text()))
def test_any_row_is_a_pair_or_a_refusal(row: dict[str, Any]) -> None:
    outcome = PROMPT.read(row)
    assert isinstance(outcome, Refusal) or outcome.chosen == row["chosen"]


def test_formats_are_told_apart_by_their_columns_and_texts() -> None:
    assert recognise("f", [{"query": "a", "chosen": "b", "rejected": "c"}]) is QUERY
    assert recognise("f", [TEXT | {"id": 1}]) is PROMPT
    assert recognise("f", [{"chosen": None}, {"chosen": dialogue("Hi", "A"), "rejected": ""}]) is DIALOGUES


def test_a_column_may_be_absent_from_the_first_row() -> None:
    assert recognise("f", [{"prompt": "a", "chosen": "b"}, TEXT]) is PROMPT


def test_a_misnamed_column_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(DataError, match="`prompt` is missing; did you mean `promt`") as caught:
        recognise("data.jsonl", [{"promt": "a", "chosen": "b", "rejected": "c"}])
    assert caught.value.found == "promt, chosen, rejected"
    assert "query, chosen, rejected" in caught.value.expected and caught.value.where == "data.jsonl"


def test_answers_without_a_prompt_column_are_no_dialogues() -> None:
    with pytest.raises(DataError, match="is missing"):
        recognise("data.jsonl", [{"question": "a", "chosen": "b", "rejected": "c"}])


def test_a_field_map_gives_columns_their_meaning() -> None:
    (form,) = candidates("问题", "安全", "违规")
    assert (
        read(recognise("f", [{"安全": "b", "问题": "a", "违规": "c"}], [form]), 问题="a", 安全="b", 违规="c").chosen
        == "b"
    )


def test_a_field_map_of_one_answer_keeps_the_other_names() -> None:
    known = candidates(rejected="worse")
    assert recognise("f", [{"query": "a", "chosen": "b", "worse": "c"}], known).columns == ("query", "chosen", "worse")
    row = {"chosen": dialogue("Hi", "A"), "worse": dialogue("Hi", "B")}
    assert read(recognise("f", [row], known), **row).rejected == "B"


def test_half_a_character_in_a_column_name_can_be_printed() -> None:
    with pytest.raises(DataError) as caught:
        recognise("f", [{json.loads('"\\ud800"'): 1}])
    assert str(caught.value).encode("utf-8")


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
