from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.comparisons import Refused
from engine.preferences.shapes import MESSAGES, TEXT, Column, Shape, Unparsed, as_list, shape_of, words

USER, REPLY = {"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (None, Shape.NOTHING),
        ("a", Shape.TEXT),
        ("", Shape.TEXT),
        ("text\n\nHuman: later", Shape.TEXT),
        ("\n\nHuman: Hi", Shape.DIALOGUE),
        ("Assistant: Hi", Shape.DIALOGUE),
        (3.5, Shape.NUMBER),
        (b"a", Shape.OTHER),
        (Unparsed("["), Shape.BROKEN),
        (REPLY, Shape.MESSAGE),
        ({"messages": [USER]}, Shape.REQUEST),
        ({"a": 1}, Shape.OBJECT),
        ([], Shape.EMPTY),
        ([USER, REPLY], Shape.TURNS),
        ([{"role": "system", "content": "a"}], Shape.TURNS),
        ([REPLY], Shape.REPLY),
        ([USER, {"from": "gpt", "value": ["b", "c"]}], Shape.RANKED),
        ([USER, {"role": "assistant", "content": ["b"], "value": None}], Shape.RANKED),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}], Shape.TURNS),
        ([USER, 3], Shape.TURNS),
        ([{"response": "a"}, {}], Shape.COMPLETIONS),
        ([{"text": "a"}], Shape.LIST),
        (["a", None], Shape.TEXTS),
        ([1, "2", None], Shape.NUMBERS),
        ([["a", "b"], ("c", "d")], Shape.EXCHANGES),
        ([["a"]], Shape.LIST),
    ],
)  # fmt: skip
def test_a_value_has_the_shape_that_it_looks_like(value: Any, shape: Shape) -> None:
    assert shape_of(value) is shape


@given(st.from_type(object))
def test_anything_has_a_shape(value: object) -> None:
    assert shape_of(value) in Shape


def test_a_table_of_messages_is_a_list_of_them() -> None:
    table = {"role": ["user", "assistant"], "content": ["a", "b"]}
    assert as_list(table) == [USER, {"role": "assistant", "content": "b"}]
    assert shape_of(table) is Shape.TURNS
    assert Column(("chosen",), MESSAGES).value({"chosen": table}) == as_list(table)


def test_a_table_whose_columns_differ_in_length_loses_nothing() -> None:
    table = {"role": ["user", "assistant"], "content": ["a"]}
    assert as_list(table) is table


def test_a_column_is_the_first_of_its_names_that_holds_something() -> None:
    column = Column(("a", "b"), TEXT)
    assert column.value({"a": None, "b": "x"}) == column.value({"b": "x"}) == column.value({"a": "x", "b": "y"}) == "x"
    assert column.name({}) == "a" and Column((), TEXT).name({"a": "x"}) == ""


def test_an_optional_column_may_be_absent_or_null_but_not_of_another_shape() -> None:
    column = Column(("a",), TEXT | {Shape.NOTHING})
    assert column.optional and not Column(("a",), TEXT).optional
    assert column.value({}) is column.value({"a": None}) is None
    with pytest.raises(Refused, match="not_a_string"):
        column.value({"a": 3})


@pytest.mark.parametrize(
    ("row", "shapes", "expected"),
    [({}, TEXT, "missing_field"), ({"a": None}, TEXT, "null_field"), ({"a": 3}, TEXT, "not_a_string"),
     ({"a": [USER]}, TEXT, "not_a_string"), ({"a": "b"}, MESSAGES, "unexpected_type")],
)  # fmt: skip
def test_a_value_of_another_shape_is_refused_by_name(row: dict[str, Any], shapes: Any, expected: str) -> None:
    with pytest.raises(Refused) as caught:
        Column(("a",), shapes).value(row)
    assert caught.value.refusal.reason == expected and "`a`" in caught.value.refusal.detail


def test_shapes_are_named_for_people() -> None:
    assert words(TEXT | {Shape.NOTHING}) == "text or a whole dialogue as text"


def test_an_optional_list_that_is_blank_text_is_absent_as_a_csv_file_leaves_it_out() -> None:
    column = Column(("a",), frozenset({Shape.EXCHANGES, Shape.NOTHING}))
    assert column.value({"a": " "}) is None and column.seen({"a": ""}) is Shape.NOTHING
    assert Column(("a",), TEXT | {Shape.NOTHING}).value({"a": " "}) == " "


def test_a_text_that_is_no_value_is_refused_as_broken() -> None:
    with pytest.raises(Refused, match="broken_json"):
        Column(("a",), MESSAGES).value({"a": Unparsed("[{")})
