from typing import Any

import pytest

from engine.errors import DataError
from engine.preferences.formats import candidates, recognise

ANSWERS = {"chosen": "b", "rejected": "c"}


def fix(row: dict[str, Any], name: str = "", **fields: str) -> str:
    with pytest.raises(DataError) as caught:
        recognise("data.jsonl", [row], candidates(fields, name))
    return caught.value.fix


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"question": "a", "system": "s", **ANSWERS}, {"prompt": "question"}),
        ({"input": "a", "system": "s", **ANSWERS}, {"prompt": "input"}),
        (
            {"instruction": "a", "chosen_response": "b", "rejected_response": "c"},
            {"chosen": "chosen_response", "rejected": "rejected_response"},
        ),
        ({"Question": "a", "good": "b", "bad": "c"}, {"prompt": "Question", "chosen": "good", "rejected": "bad"}),
    ],
)
def test_usual_names_of_columns_give_the_whole_setting_and_it_reads_the_data(
    row: dict[str, Any], settings: dict[str, str]
) -> None:
    lines = " ".join(f"--set download.fields.{key}={name}" for key, name in settings.items())
    assert fix(row) == f"say which columns hold what: {lines}"
    assert isinstance(recognise("f", [row], candidates(settings)).format.read(row), list)


def test_other_names_are_listed_for_the_user_to_choose_from() -> None:
    said = fix({"goal": "a", "aim": "b", "target": "c"})
    assert "--set download.fields.prompt=COLUMN" in said and "COLUMN is one of goal, aim, target" in said
    assert fix({"prompt": "a", "an x": "b", "y": "c"}).count("COLUMN") == 3


def test_a_name_that_a_shell_would_take_apart_is_quoted() -> None:
    assert "--set 'download.fields.chosen=the chosen; one'" in fix(
        {"prompt": "a", "the chosen; one": "b", **{"rejected": "c"}}
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": True},
        {"instruction": "a", "input": "", "output": "b"},
        {"prompt": "a", "answers": [{"answer": "b", "rank": 1}]},
    ],
)
def test_one_answer_a_row_is_told_to_be_no_comparison(row: dict[str, Any]) -> None:
    assert "two answers" in fix(row) and "COLUMN" not in fix(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1},
        {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 1},
    ],
)
def test_a_verdict_in_a_column_of_its_own_is_told_not_to_be_read(row: dict[str, Any]) -> None:
    assert "as `chosen`" in fix(row) and "--set" not in fix(row)


def test_two_texts_alone_lack_a_prompt_or_marks() -> None:
    assert "add a column `prompt`" in fix(ANSWERS) and "Human:" in fix(ANSWERS)


def test_a_column_of_another_look_says_how_to_write_it() -> None:
    assert fix({"prompt": "a", "chosen": 1, "rejected": "c"}).startswith("write `chosen` as text")


def test_a_column_that_is_not_needed_can_be_left_out_with_a_setting_that_reads_the_data() -> None:
    row = {"instruction": "a", "history": 1, **ANSWERS}
    assert fix(row).endswith("""or leave the column out: --set 'download.ignore=["history"]'""")
    assert isinstance(recognise("f", [row], candidates(ignore=["history"])).format.read(row), list)


def test_whole_conversations_under_a_field_map_need_no_prompt() -> None:
    whole = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"question": "q", "good": whole, "bad": [whole[0], {"role": "assistant", "content": "b"}]}
    said = fix(row, prompt="question", chosen="good", rejected="bad")
    assert said.startswith("take download.fields.prompt away")
    assert recognise("f", [row], candidates({"chosen": "good", "rejected": "bad"})).format.name == "messages-implicit"


def test_a_named_column_that_is_not_there_is_named_otherwise() -> None:
    assert "columns that the data has" in fix({"prompt": "a", **ANSWERS}, prompt="none")
