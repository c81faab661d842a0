import json
from typing import Any

from engine.preferences.formats import candidates, recognise
from engine.preferences.later import Later
from engine.preferences.ledger import Refusal
from engine.preferences.reading import Record

TEXT = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
QUERY = {"query": "What?", "chosen": "Me.", "rejected": "You."}


def told(*later: dict[str, Any] | Refusal, known: Any = None) -> list[dict[str, Any]]:
    formats = known or candidates()
    watch = Later(recognise("f", [TEXT], formats).format, formats)
    for row, content in enumerate([TEXT, *later], 1):
        watch.add(Record("f", row, content))
    return watch.told()


def test_rows_of_the_same_kind_and_damaged_ones_are_not_told() -> None:
    assert told(TEXT, TEXT | {"chosen": None}, TEXT | {"id": 3}, TEXT | {"chosen": ""}, Refusal("broken_json")) == []


def test_rows_of_another_format_are_told_with_its_name_the_first_and_how_many() -> None:
    (other,) = told(QUERY, TEXT, QUERY)
    assert (other["row"], other["count"], other["columns"]) == (2, 2, "query, chosen, rejected")
    assert other["problem"] == "they are of the format query/chosen/rejected, not prompt/chosen/rejected"


def test_rows_that_another_format_would_read_otherwise_are_told() -> None:
    (other,) = told(TEXT | {"query": "What?"})
    assert other["problem"].startswith("query/chosen/rejected would read other pairs of them")


def test_rows_of_no_format_are_told_with_what_they_lack_the_most_frequent_first() -> None:
    first, second = told({"text": "a"}, {"note": 1, **TEXT, "query": "x"}, {"text": "b"})
    assert first["problem"] == "they lack `prompt`, `chosen` and `rejected`" and first["count"] == 2
    assert second["row"] == 3
    (only,) = told(QUERY, known=candidates(name="prompt/chosen/rejected"))
    assert only["problem"] == "they lack `prompt`"


def test_later_rows_of_messages_in_text_are_told_as_what_they_are() -> None:
    asked = [{"role": "user", "content": "Who?"}]
    said = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    row = {"prompt": json.dumps(asked)} | {side: json.dumps(reply) for side, reply in said.items()}
    formats = candidates()
    watch = Later(recognise("f", [row], formats).format, formats)
    watch.add(Record("f", 1, row))
    watch.add(Record("f", 2, {side: json.dumps(asked + reply) for side, reply in said.items()}))
    (other,) = watch.told()
    assert other["problem"] == "they are of the format messages-implicit, not messages"


def test_kinds_without_end_are_neither_all_kept_nor_all_told() -> None:
    assert len(told(*({str(number): "a"} for number in range(1_000)))) == 5


def test_columns_of_any_name_can_be_printed() -> None:
    (other,) = told({"\x1b[2J\ud800": "a"})
    assert "\x1b" not in other["columns"] and other["columns"].encode("utf-8")
