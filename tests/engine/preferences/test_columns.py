from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.columns import columns_of
from engine.secrets import visible

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_whatever_columns_hold_can_be_told_and_printed(value: Any) -> None:
    (told,) = columns_of([{"a": value}]).values()
    assert told == visible(told) != ""


def test_lists_in_lists_without_end_are_told() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert columns_of([{"a": nested}]) == {"a": "list of lists"}


def test_columns_are_told_by_what_all_rows_hold() -> None:
    rows = [{"a": "x", "b": [{"role": "user", "content": "x"}]}, {"a": None, "b": [], "c": 1.5}]
    assert columns_of(rows) == {"a": "text or nothing", "b": "list of {role, content} or empty list",
                                "c": "number or nothing"}  # fmt: skip


def test_a_column_that_only_later_rows_have_is_told_and_so_are_many_kinds_of_one() -> None:
    rows = [*[{"a": 1}] * 30, {"a": 1, "late": "x"}]
    assert columns_of(rows) == {"a": "number", "late": "text or nothing"}
    many = columns_of([{"a": {str(kind): 1}} for kind in range(9)])["a"]
    assert many.count("{") == 4 and many.endswith("or something else")


def test_columns_without_end_are_not_all_told() -> None:
    assert len(columns_of([{str(name): 1} for name in range(1_000)])) == 200
