from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.instructions import FORMATS, Instruction, instruction, is_local, recognise, usable
from engine.preferences.ledger import Ledger, Refusal
from engine.preferences.reading import Record
from engine.preferences.schema import LEDGER, read_table

ALPACA, PLAIN = ("instruction", "output"), ("prompt", "response")


def asked(question, response):
    return Instruction([{"role": "user", "content": question}], response)


def alpaca(**changes):
    return instruction({"instruction": "Translate.", "input": "", "output": "好。"} | changes, ALPACA)


def test_the_columns_tell_the_format():
    assert recognise("f", ["output", "input", "instruction", "history"]) == ALPACA
    assert recognise("f", ["id", "prompt", "response"]) == PLAIN


def test_unknown_columns_are_refused_beside_the_known_ones():
    with pytest.raises(DataError, match="none of the known columns") as caught:
        recognise("data.json", ["query", "answer"])
    assert caught.value.expected == "instruction and output or prompt and response"
    assert (caught.value.found, caught.value.where) == ("query, answer", "data.json")


def test_an_instruction_alone_is_the_question():
    assert alpaca() == asked("Translate.", "好。")
    assert alpaca(input="  ") == asked("Translate.", "好。")
    assert alpaca(input=None) == asked("Translate.", "好。")
    assert instruction({"instruction": "Go.", "output": "Done."}, ALPACA) == asked("Go.", "Done.")


def test_an_input_stands_on_a_line_of_its_own():
    assert alpaca(input="Good.") == asked("Translate.\nGood.", "好。")


def test_a_prompt_and_its_response_stay_as_they_are():
    assert instruction({"prompt": " Hi \n", "response": "Yes "}, PLAIN) == asked(" Hi \n", "Yes ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"output": None}, "null_field"),
        ({"output": 7}, "not_a_string"),
        ({"input": ["a"]}, "not_a_string"),
        ({"output": " \n"}, "empty_response"),
        ({"instruction": "", "input": ""}, "empty_prompt"),
        ({"output": "half \ud83d"}, "not_unicode"),
    ],
)
def test_a_row_that_teaches_nothing_is_refused_with_its_reason(changes, reason):
    found = alpaca(**changes)
    assert isinstance(found, Refusal)
    assert found.reason == reason


def test_a_row_without_the_column_is_refused():
    assert instruction({"prompt": "Hi"}, PLAIN) == Refusal("null_field", "`response`")


@pytest.mark.parametrize("name", ["BelleGroup/train_3.5M_CN", "owner/v1.0", "owner/name", "owner/jsonl"])
def test_owner_and_name_are_on_the_hub_whatever_dots_they_hold(name):
    assert not is_local(name)


@pytest.mark.parametrize(
    "name",
    ["a/b.jsonl", "a/b.json.gz", "a/B.CSV", "a/b*", "a/[ab]", "./a/b", "../b", "/a/b", "~/b", "a/b/c", "b", "b/", "/"],
)
def test_whatever_is_no_owner_and_name_is_local(name):
    assert is_local(name)


def test_what_is_there_is_local_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/name").touch()
    assert is_local("owner/name")


def test_examples_know_their_row_and_unusable_ones_are_in_the_ledger(tmp_path):
    contents = [
        Refusal("broken_json", "{"),
        {"prompt": "Hi", "response": "Yes"},
        {"prompt": "Hi", "response": None},
        {"prompt": "Go", "response": "Done"},
    ]
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        found = list(usable([Record("f", row, content) for row, content in enumerate(contents, 1)], ledger))
    assert [(each.response, each.source, each.row) for each in found] == [("Yes", "f", 2), ("Done", "f", 4)]
    entries = read_table(ledger.path, LEDGER).to_pylist()
    assert [(entry["source"], entry["row"], entry["reason"]) for entry in entries] == [
        ("f", 1, "broken_json"),
        ("f", 3, "null_field"),
    ]


values = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=2), max_size=2))


@given(
    st.dictionaries(st.sampled_from(["instruction", "input", "output", "prompt", "response"]), values),
    st.sampled_from(list(FORMATS)),
)
def test_every_row_is_an_example_or_a_refusal(row, columns):
    found = instruction(row, columns)
    if isinstance(found, Instruction):
        assert found.response.strip() and found.prompt[0]["content"].strip()
        assert found.response == row[columns[1]]
    else:
        assert found.reason
