from collections.abc import Iterator

import pytest

from engine.errors import DataError
from engine.preferences.formats import candidates
from engine.preferences.ledger import Refusal
from engine.preferences.origin import Origin, pairs_of
from engine.preferences.reading import Record

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


def records(*contents: dict[str, object] | Refusal) -> Iterator[Record]:
    return (Record("s", row, content) for row, content in enumerate(contents, 1))


def test_it_begins_anew_each_time_it_is_read() -> None:
    origin = Origin("s", lambda: records(ROW, ROW))
    assert [record.row for record in origin.records()] == [record.row for record in origin.records()] == [1, 2]


def test_no_row_beyond_the_limit_is_asked_for() -> None:
    def source() -> Iterator[Record]:
        yield from records(ROW, Refusal("broken_json"))
        pytest.fail("a third row was asked for")

    assert len(list(Origin("s", source, most=2).records())) == 2


def test_a_sample_passes_over_rows_that_cannot_be_read_and_is_small() -> None:
    origin = Origin("s", lambda: records(Refusal("broken_json"), *[ROW] * 1_000))
    assert origin.sample() == [ROW] * 20


def test_the_format_is_told_by_the_sample_and_named_with_its_source() -> None:
    assert Origin("s", lambda: records(ROW)).detect(candidates()).format.name == "prompt/chosen/rejected"
    with pytest.raises(DataError, match=r"other\.jsonl"):
        Origin("other.jsonl", lambda: records({"text": "x"})).detect(candidates())


def test_a_row_that_cannot_be_read_keeps_its_reason_and_one_that_can_gives_its_pairs() -> None:
    form = Origin("s", lambda: records(ROW)).detect(candidates()).format
    broken, whole = records(Refusal("broken_json", "x"), ROW)
    assert pairs_of(broken, form) == Refusal("broken_json", "x")
    found = pairs_of(whole, form)
    assert isinstance(found, list) and [(pair.chosen, pair.rejected) for pair in found] == [("a", "b")]
