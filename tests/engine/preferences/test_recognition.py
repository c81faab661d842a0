import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import DataError
from engine.preferences.formats import candidates
from engine.preferences.ledger import Refusal
from engine.preferences.recognition import Detection, recognise

TEXT = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
HARMLESS = {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}


def message(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


WHOLE = {side: [message("Who?", "user"), message(side)] for side in ("chosen", "rejected")}
REPLIES = {side: [message(side)] for side in ("chosen", "rejected")}
RATED = {"generations": ["a", "b", "c"], "ratings": [1, 5, 3]}


def seen(*rows: dict[str, Any], name: str = "") -> Detection:
    return recognise("f", rows, candidates(name=name))


def taken(*rows: dict[str, Any]) -> str:
    return seen(*rows).format.name


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (TEXT, "prompt/chosen/rejected"),
        ({"query": "a", "chosen": "b", "rejected": "c"}, "query/chosen/rejected"),
        (HARMLESS, "hh-rlhf"),
        (WHOLE, "messages-implicit"),
        # A prompt beside whole conversations repeats what they begin with, and `messages` repeats the chosen one.
        (WHOLE | {"prompt": "Who?", "messages": WHOLE["chosen"]}, "messages-implicit"),
        (WHOLE | {"prompt": [message("Who?", "user")]}, "messages-implicit"),
        (REPLIES | {"prompt": "Who?"}, "messages"),
        (REPLIES | {"prompt": [message("Who?", "user")]}, "messages"),
        (TEXT | {"prompt": [message("Who?", "user")]}, "messages"),
        (TEXT | {"prompt": "\n\nHuman: Who?\n\nAssistant:"}, "prompt/chosen/rejected"),
        (REPLIES | {"messages": [message("Who?", "user")]}, "messages/chosen/rejected"),
        (RATED | {"input": "Who?"}, "argilla"),
        (RATED | {"prompt": [message("Who?", "user")]}, "argilla"),
        ({"instruction": "Who?", "input": "", "chosen": "a", "rejected": "b"}, "alpaca-ranking"),
    ],
)
def test_a_format_is_told_by_columns_and_by_what_they_hold(row: dict[str, Any], name: str) -> None:
    assert taken(row) == name


AMBIGUOUS = {
    "two prompts": (TEXT | {"query": "What?"}, "prompt/chosen/rejected", "query/chosen/rejected"),
    "an instruction too": (TEXT | {"instruction": "Be brief."}, "prompt/chosen/rejected", "alpaca-ranking"),
    "a prompt beside whole dialogues": (HARMLESS | {"prompt": "Be good."}, "prompt/chosen/rejected", "hh-rlhf"),
    "messages too": (
        TEXT | {"messages": [message("Hi", "user"), message("Hello"), message("Who?", "user")]},
        "prompt/chosen/rejected",
        "messages/chosen/rejected",
    ),
    "a pair drawn from three that are there": (TEXT | RATED, "prompt/chosen/rejected", "argilla"),
    "conversations and messages": (
        REPLIES | {"messages": [message("a", "user")], "conversations": [message("b", "user")]},
        "messages/chosen/rejected",
        "sharegpt-ranking",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_two_readings_are_an_error_that_names_both_and_says_what_to_set(case: str) -> None:
    row, *names = AMBIGUOUS[case]
    with pytest.raises(DataError, match="two data formats fit") as caught:
        seen(row)
    for name in names:
        assert name in caught.value.problem and f"--set download.format={name}" in caught.value.fix
        assert seen(row, name=name).format.name == name


def test_two_formats_that_read_the_same_pairs_are_no_two_readings() -> None:
    assert taken(TEXT | {"query": "Who?"}, TEXT | {"query": "Who?"}) == "prompt/chosen/rejected"
    with pytest.raises(DataError):
        seen(TEXT | {"query": "Who?"}, TEXT | {"query": "What?"})


def test_what_few_rows_look_like_is_taken_for_damage() -> None:
    odd = {"chosen": HARMLESS["chosen"], "rejected": HARMLESS["rejected"], "prompt": "Be good."}
    assert taken(*[TEXT] * 3, odd) == "prompt/chosen/rejected"


def test_a_file_of_texts_and_messages_is_read_as_what_can_read_more_of_it() -> None:
    found = seen(*[REPLIES | {"prompt": "Who?"}] * 2, TEXT)
    assert found.format.name == "messages"
    assert isinstance(found.format.read(TEXT), list)


def test_damaged_rows_do_not_hide_a_format() -> None:
    broken = [{}, {"prompt": 1}, TEXT | {"chosen": None}, TEXT | {"rejected": ["x"]}]
    for rows in itertools.permutations([*broken, TEXT], 5):
        assert taken(*rows) == "prompt/chosen/rejected"
    assert taken({"chosen": None}, HARMLESS | {"rejected": ""}) == "hh-rlhf"


def test_a_column_may_be_absent_from_the_first_row() -> None:
    assert taken({"prompt": "a", "chosen": "b"}, TEXT) == "prompt/chosen/rejected"


def test_why_says_what_was_seen_and_in_how_many_rows() -> None:
    assert seen(TEXT, TEXT | {"chosen": None}).why == (
        "prompt, chosen, rejected: text; so in 1 of the 2 rows looked at"
    )
    assert "chosen, rejected: messages that begin with the assistant" in seen(REPLIES | {"prompt": "a"}).why


def test_a_system_column_is_read_by_every_format_of_two_texts() -> None:
    for row in (TEXT, {"query": "a", "chosen": "b", "rejected": "c"}, HARMLESS):
        found = seen(row | {"system": "Be brief."})
        (pair,) = found.format.read(row | {"system_prompt": "Be brief."})
        assert pair.prompt[0] == message("Be brief.", "system") and "system" in found.why


def test_why_can_be_printed_whatever_the_columns_are_called() -> None:
    name = json.loads('"\\ud800\\u001b[2J"')
    known = candidates({"prompt": name})
    why = recognise("f", [{name: "a", "chosen": "b", "rejected": "c"}], known).why
    assert why.encode("utf-8") and "\x1b" not in why


def test_a_field_map_gives_columns_their_meaning() -> None:
    known = candidates({"prompt": "问题", "chosen": "安全", "rejected": "违规"})
    row = {"安全": "b", "问题": "a", "违规": "c"}
    (pair,) = recognise("f", [row], known).format.read(row)
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("a", "b", "c")


def test_a_field_map_of_one_answer_keeps_the_other_names() -> None:
    known = candidates({"rejected": "worse"})
    assert recognise("f", [{"query": "a", "chosen": "b", "worse": "c"}], known).format.name == "query/chosen/rejected"
    row = {"chosen": HARMLESS["chosen"], "worse": HARMLESS["rejected"]}
    (pair,) = recognise("f", [row], known).format.read(row)
    assert pair.rejected == "rejected"


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


@pytest.mark.parametrize(
    "row",
    [
        WHOLE,
        REPLIES | {"prompt": [message("Who?", "user")]},
        WHOLE | {"prompt": "Who?"},
        WHOLE | {"prompt": ""},
        TEXT | {"prompt": [message("Who?", "user")]},
        RATED | {"instruction": "Who?"},
        {"instruction": "Who?", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]},
        {"input": {"messages": [message("Who?", "user")]}, "preferred_output": [message("a")],
         "non_preferred_output": [message("b")]},
        {"instruction": "Who?", "history": [["a", "b"]], "chosen": "x", "rejected": "y"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", [json.dumps, repr])
def test_messages_and_lists_that_a_table_holds_as_text_are_read_as_what_they_are(
    row: dict[str, Any], write: Callable[[Any], str]
) -> None:
    text = {name: value if isinstance(value, str) else write(value) for name, value in row.items()}
    found, plain = seen(text), seen(row)
    assert found.format.name == plain.format.name and "written as JSON in text" in found.why
    assert found.format.read(text) == plain.format.read(row)
    assert found.format.read(text) == found.format.read(row), "a Parquet file may hold both"
    assert "written" not in plain.why


CHAT = "Write a chat as JSON."


@pytest.mark.parametrize(
    ("row", "spoken", "plain", "fields"),
    [
        (as_text(WHOLE) | {"prompt": CHAT}, "messages-implicit", "prompt/chosen/rejected", {}),
        (as_text(WHOLE) | {"query": CHAT}, "messages-implicit", "query/chosen/rejected", {}),
        (as_text(REPLIES) | {"prompt": CHAT}, "messages", "prompt/chosen/rejected", {}),
        (as_text(REPLIES) | {"asked": CHAT}, "messages", "prompt/chosen/rejected", {"prompt": "asked"}),
    ],
)
def test_texts_that_are_messages_and_may_be_answers_are_a_question_with_both_readings(
    row: dict[str, Any], spoken: str, plain: str, fields: dict[str, str]
) -> None:
    with pytest.raises(DataError, match="messages written as JSON") as caught:
        recognise("f", [row], candidates(fields))
    for name in (spoken, plain):
        assert f"--set download.format={name} " in caught.value.fix
    (pair,) = recognise("f", [row], candidates(fields, plain)).format.read(row)
    assert (pair.prompt, pair.chosen) == ([message(CHAT, "user")], row["chosen"])
    assert recognise("f", [row], candidates(fields, spoken)).format.written == {"chosen", "rejected"}


def test_damage_among_conversations_that_repeat_their_prompt_raises_no_question() -> None:
    row = as_text(WHOLE) | {"prompt": "Who?"}
    found = seen(*[row] * 3, row | {"chosen": row["chosen"][:-3]}, row | {"prompt": "What?"})
    assert found.format.name == "messages-implicit" and found.format.written == {"chosen", "rejected"}


def test_messages_on_one_side_alone_are_an_error_that_says_how_to_read_texts() -> None:
    row = {"prompt": CHAT, "chosen": as_text(WHOLE)["chosen"], "rejected": "No."}
    with pytest.raises(DataError, match="cannot be read") as caught:
        seen(row)
    assert "texts as they stand: --set download.format=prompt/chosen/rejected" in caught.value.fix


def test_only_columns_that_the_format_reads_are_written_ones() -> None:
    row = as_text(WHOLE | {"history": [["a", "b"]], "messages": WHOLE["chosen"]})
    found = seen(row)
    assert found.format.written == {"chosen", "rejected"}
    assert found.why.count("written as JSON in text: chosen, rejected;") == 1


def test_answers_that_are_objects_of_a_from_or_a_role_are_texts() -> None:
    for answer in ({"from": "Berlin", "to": "Paris"}, {"role": "admin", "content": "x"}, [{"from": "user"}]):
        row = TEXT | {"chosen": json.dumps(answer), "rejected": json.dumps({"no": 1})}
        (pair,) = seen(row).format.read(row)
        assert pair.chosen == row["chosen"]


def test_a_system_column_that_never_holds_text_is_an_unknown_one_and_is_told() -> None:
    for value in (3, ["a"], {"a": 1}):
        row = TEXT | {"system": value}
        found = seen(row, row)
        assert isinstance(found.format.read(row), list) and "no system prompt: system" in found.why
    some = TEXT | {"system": "Be brief."}
    refusal = seen(some, TEXT | {"system": 3}).format.read(TEXT | {"system": 3})
    assert isinstance(refusal, Refusal) and """--set 'download.ignore=["system"]'""" in refusal.detail


def test_a_cut_cell_among_messages_in_text_is_refused_and_a_blank_one_is_nothing() -> None:
    row = as_text(REPLIES | {"prompt": [message("Who?", "user")]})
    form = seen(row, row, row | {"chosen": row["chosen"][:-2]}).format
    refusals = [form.read(row | {"chosen": cell}) for cell in (row["chosen"][:-2], " ")]
    assert [each.reason for each in refusals if isinstance(each, Refusal)] == ["broken_json", "null_field"]


def test_text_that_happens_to_be_json_stays_text() -> None:
    rows = [TEXT | {"chosen": '[{"role": "user"}]'}, TEXT, TEXT | {"prompt": '["a"]', "rejected": '{"b": 1}'}]
    found = seen(*rows)
    assert found.format.name == "prompt/chosen/rejected"
    (pair,) = found.format.read(rows[2])
    assert (pair.prompt[0]["content"], pair.rejected) == ('["a"]', '{"b": 1}')
    (only,) = candidates(name="prompt/chosen/rejected")
    spoken = as_text(REPLIES | {"prompt": "Who?"})
    (pair,) = recognise("f", [spoken], [only]).format.read(spoken)
    assert pair.chosen == spoken["chosen"], "a format of texts that is asked for reads texts"


def test_cells_that_only_look_like_messages_are_an_error_that_says_how_to_write_them() -> None:
    printed = "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"  # an array of numpy
    with pytest.raises(DataError, match="cannot be read") as caught:
        seen({"chosen": printed, "rejected": printed})
    assert "cut or broken" in caught.value.found and "to_json" in caught.value.fix
