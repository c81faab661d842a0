import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.shapes import ANYTHING, MESSAGES, TEXT, Column, Shape, Unparsed
from engine.preferences.written import unwritten, written_columns

ASK = [{"role": "user", "content": "a"}]
EITHER = Column(("a",), TEXT | MESSAGES)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


def written(*cells: Any, column: Column = EITHER) -> bool:
    return written_columns([{"a": cell} for cell in cells], [column]) == {"a"}


def test_a_column_is_written_when_most_of_its_texts_are_what_is_sought() -> None:
    text = json.dumps(ASK)
    assert written(text) and written(text, text, "plain") and written(text, None, " ")
    assert not written(text, "plain") and not written("plain") and not written(None) and not written(ASK)


def test_objects_are_messages_only_with_a_known_role_and_something_said() -> None:
    for value in ({"from": "Berlin", "to": "Paris"}, {"role": "admin", "content": "x"}, {"role": "user"}, [ASK[0], 3]):
        assert not written(json.dumps(value)), value
    for message in ({"from": "Human", "value": "a"}, {"role": "tool", "content": ""}):
        assert written(json.dumps([message]))
    assert not written('{"from": "Berlin", "to": ') and written('[{"content": "a", "role": "user"}\n {')


def test_only_what_a_format_looks_for_is_taken_for_written() -> None:
    assert not written(json.dumps(ASK), column=Column(("a",), TEXT))
    assert not written(json.dumps(ASK), column=Column(("a",), ANYTHING))
    assert not written('["x"]') and written('["x"]', column=Column(("a",), frozenset({Shape.TEXTS})))
    assert not written("[]", "{}", column=Column(("a",), MESSAGES))


@given(st.text() | st.text(alphabet="[]{}'\"role:, 1").map("[".__add__))
def test_any_text_of_a_written_column_is_a_value_or_is_told_to_be_none(text: str) -> None:
    value = unwritten({"a": text, "b": text}, frozenset({"a"}))
    assert value["b"] == text and (value["a"] == text or not isinstance(value["a"], str))


@given(st.lists(JSON, max_size=3))
def test_lists_come_back_from_json_and_from_python(value: list[Any]) -> None:
    for text in (json.dumps(value), repr(value)):
        assert unwritten({"a": text}, frozenset({"a"})) == {"a": value}


def test_depth_without_end_is_no_value() -> None:
    value = unwritten({"a": "[" * 100_000}, frozenset({"a"}))["a"]
    assert isinstance(value, Unparsed)
