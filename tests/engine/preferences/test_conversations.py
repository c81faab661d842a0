from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.comparisons import Refused
from engine.preferences.conversations import answered, asked, check_text_alone, exchanged, marked_turns, turns
from engine.preferences.shapes import Beside


def reason(call: Any, *given: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*given)
    return caught.value.refusal.reason


@pytest.mark.parametrize(
    ("spoken", "role"),
    [("human", "user"), ("User", "user"), ("gpt", "assistant"), ("assistant", "assistant"), (" model ", "assistant"),
     ("system", "system"), ("developer", "system")],
)  # fmt: skip
def test_every_spelling_of_a_message_reads_the_same(spoken: str, role: str) -> None:
    expected = [{"role": role, "content": " Hi\n"}]
    assert turns([{"from": spoken, "value": " Hi\n"}], "chosen") == expected
    assert turns({"role": spoken, "content": " Hi\n"}, "chosen") == expected
    both = {"role": spoken, "content": [{"type": "text", "text": " Hi"}, "\n"], "from": None, "tool_calls": None}
    assert turns((both,), "chosen") == expected


def test_text_is_the_users_in_a_prompt_and_the_assistants_in_an_answer() -> None:
    assert asked("Who?") == [{"role": "user", "content": "Who?"}]
    assert answered("Me.", "chosen") == [{"role": "assistant", "content": "Me."}]
    assert answered({"from": "gpt", "value": "Me."}, "chosen") == answered("Me.", "chosen")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "tool", "content": "3"}, "tool_content"),
        ({"from": "function_call", "value": "{}"}, "tool_content"),
        ({"from": "observation", "value": "{}"}, "tool_content"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "tool_content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_content"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "image_content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "image_content"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "not_a_string"),
        ({"role": "user", "content": [3]}, "not_a_string"),
        ({"role": "user", "content": {"text": "a"}}, "not_a_string"),
        ({"role": "user"}, "null_field"),
        ({"role": "narrator", "content": "a"}, "unknown_role"),
        ({"role": 3, "content": "a"}, "unknown_role"),
        ({"content": "a"}, "unknown_role"),
        ("a", "not_a_message"),
    ],
)
def test_what_is_no_turn_of_text_is_refused_by_name(message: Any, expected: str) -> None:
    assert reason(turns, [message], "chosen") == expected


def test_a_refusal_says_where_the_message_stands() -> None:
    with pytest.raises(Refused) as caught:
        turns([{"role": "user", "content": "a"}, {"role": "assistant"}], "rejected")
    assert "`rejected`, message 2" in caught.value.refusal.detail


def test_what_is_no_list_of_messages_is_refused() -> None:
    assert reason(turns, 3, "chosen") == reason(turns, "text", "chosen") == "not_a_message"


@pytest.mark.parametrize(
    ("row", "expected"),
    [({"tools": '[{"name": "search"}]'}, "tool_content"), ({"functions": [{}]}, "tool_content"),
     ({"images": ["a.png"]}, "image_content"), ({"videos": ["a.mp4"]}, "image_content")],
)  # fmt: skip
def test_a_row_with_more_than_text_is_refused(row: dict[str, Any], expected: str) -> None:
    assert reason(check_text_alone, row) == expected


def test_columns_of_tools_or_images_that_are_ignored_are_not_looked_at() -> None:
    row = {"tools": [{}], "image": "a.png"}
    check_text_alone(row, frozenset(row))
    with pytest.raises(Beside) as caught:
        check_text_alone(row, frozenset({"tools"}))
    assert caught.value.columns == ("image",)


def test_an_empty_column_of_tools_or_images_is_none() -> None:
    for nothing in (None, "", [], "[]", {}, "null"):
        check_text_alone({"tools": nothing, "images": nothing})


def test_a_turn_may_hold_paragraphs_and_the_word_human() -> None:
    text = "\n\nHuman: Hi\n\nHuman nature: what?\n\nAssistant: Human: is no mark here. "
    assert [turn["content"] for turn in marked_turns(text)] == ["Hi\n\nHuman nature: what?", "Human: is no mark here."]
    assert marked_turns("preface" + text) == marked_turns("just text") == []


def test_exchanges_are_turns_of_user_and_assistant() -> None:
    assert exchanged([["a", "b"], ("c", "d")]) == [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)
    ]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"]), inner)))  # fmt: skip
def test_anything_is_turns_or_is_refused(value: Any) -> None:
    try:
        found = turns(value, "chosen")
    except Refused as refused:
        assert refused.refusal.reason.isidentifier()
    else:
        assert all(turn["role"] in ("system", "user", "assistant") for turn in found)


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), st.text(st.characters(exclude_characters="\n:"))),
                min_size=1))  # fmt: skip
def test_marked_turns_come_back_as_they_were_written(said: list[tuple[str, str]]) -> None:
    found = marked_turns("".join(f"\n\n{who}: {text}" for who, text in said))
    roles = {"Human": "user", "Assistant": "assistant"}
    assert [(turn["role"], turn["content"]) for turn in found] == [(roles[who], text.strip()) for who, text in said]
