import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.formats import candidates, recognise
from engine.preferences.mismatch import listed

PROMPTS = [{"id": "1", "prompt": "How can I kill a process?", "label": "safe"}]


def unlike(*rows: dict[str, Any], name: str = "", **fields: str) -> DataError:
    with pytest.raises(DataError) as caught:
        recognise("data.jsonl", rows, candidates(fields, name))
    return caught.value


def test_a_misnamed_column_is_an_error_that_names_the_nearest() -> None:
    error = unlike({"promt": "a", "chosen": "b", "rejected": "c"})
    assert error.problem == "the column `prompt` is missing; did you mean `promt`?"
    assert error.found == "promt, chosen, rejected" and error.where == "data.jsonl"
    assert "query, chosen, rejected" in error.expected and "--set download.fields.prompt=" in error.fix


def test_answers_without_a_prompt_column_are_no_dialogues() -> None:
    assert unlike({"question": "a", "chosen": "b", "rejected": "c"}).problem == "the column `prompt` is missing"


def test_prompts_without_answers_lack_both_answers() -> None:
    error = unlike(*PROMPTS)
    assert error.problem == "the columns `chosen` and `rejected` are missing"
    assert error.found == "id, prompt, label"


def test_data_of_nothing_that_is_known_lacks_the_plainest_format() -> None:
    error = unlike({"goal": "a", "target": "b"})
    assert error.problem == "the columns `prompt`, `chosen` and `rejected` are missing"
    assert unlike({}).found == "no columns"


@pytest.mark.parametrize(
    ("row", "column", "expected", "found"),
    [
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "chosen", "text", "a number"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, "chosen", "text", "a list of texts"),
        ({"instruction": "a", "completions": ["b", "c"]}, "completions", "`response`", "a list of texts"),
        ({"instruction": "a", "generations": ["b", "c"], "ratings": "5"}, "ratings", "a list of numbers", "text"),
    ],
)
def test_a_column_of_another_look_is_named_with_both_looks(
    row: dict[str, Any], column: str, expected: str, found: str
) -> None:
    error = unlike(row)
    assert f"`{column}` cannot be read" in error.problem
    assert expected in error.expected and error.found == found


def test_a_column_that_no_row_has_right_is_named_before_one_that_some_have() -> None:
    assert "`rejected`" in unlike({"prompt": 1, "chosen": "b", "rejected": 2}, {"prompt": "a", "rejected": 2}).problem


def test_conversations_without_answers_to_compare_lack_them() -> None:
    error = unlike({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    assert "`chosen` and `rejected` are missing" in error.problem and "sharegpt-list" in error.expected


def test_a_format_that_was_asked_for_says_what_it_lacks() -> None:
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert unlike(text, name="argilla").problem == "the columns `generations` and `ratings` are missing"
    error = unlike(text, name="hh-rlhf")
    assert "those of hh-rlhf" in error.problem and "a whole dialogue as text" in error.expected
    assert "`背景` is missing" in unlike(text, name="prompt/chosen/rejected", system="背景").problem


def test_half_a_character_in_a_column_name_can_be_printed() -> None:
    assert str(unlike({json.loads('"\\ud800"'): 1})).encode("utf-8")
    assert str(unlike({json.loads('"\\ud800"'): 1, "chosen": "a", "rejected": 3}, prompt="\ud800")).encode("utf-8")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "chosen", "rejected", "messages", "instruction", "x"]),
            st.none() | st.text(max_size=2) | st.integers() | st.lists(st.text(max_size=2), max_size=2),
        ),
        max_size=4,
    )
)
def test_any_sample_is_of_a_format_or_an_error_that_explains_itself(rows: list[dict[str, Any]]) -> None:
    try:
        assert recognise("f", rows, candidates()).why
    except DataError as error:
        assert error.problem and error.expected and error.found and error.fix


def test_names_are_listed_for_people() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
