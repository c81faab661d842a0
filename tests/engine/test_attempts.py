import json

import pytest

from engine.attempts import NOTE, leave, left_in
from engine.processes import this_process

PAYLOAD = {"stage": "train", "config": {"beta": 0.1}}


def test_what_an_attempt_was_to_make_and_who_began_it_can_be_read_later(tmp_path):
    work = tmp_path / "train-abc"
    work.mkdir()
    leave(work, PAYLOAD)
    found = left_in(work, "train")
    assert (found.stage, found.key, found.path, found.payload) == ("train", "abc", work, PAYLOAD)
    assert found.process == this_process()
    assert found.began_at[:2] == "20"
    assert not found.forced
    leave(work, PAYLOAD, forced=True)
    assert left_in(work, "train").forced


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "[" * 100_000, '{"payload": {}}', '{"payload": [], "began_at": "", "process": {}}', "\x00"],
)
def test_a_note_that_was_damaged_is_none(tmp_path, text):
    (tmp_path / NOTE).write_text(text)
    assert left_in(tmp_path, "train") is None


@pytest.mark.parametrize(
    "change", [{"payload": {"x": float("nan")}}, {"process": {"pid": "x", "host": "", "born": ""}}]
)
def test_a_note_that_makes_no_sense_is_none(tmp_path, change):
    leave(tmp_path, PAYLOAD)
    note = json.loads((tmp_path / NOTE).read_text())
    (tmp_path / NOTE).write_text(json.dumps(note | change))
    assert left_in(tmp_path, "train") is None


def test_where_nothing_was_noted_there_is_none(tmp_path):
    assert left_in(tmp_path / "gone", "train") is None
