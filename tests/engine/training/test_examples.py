import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.preferences.instructions import Instruction
from engine.preferences.ledger import Ledger
from engine.preferences.schema import LEDGER, read_table
from engine.preferences.templates import template
from engine.preferences.tokenizing import Limits, train_bpe
from engine.training import examples


@pytest.fixture(scope="module")
def form():
    return template("plain", train_bpe(["User:\nHow do I bake a cake?\nAssistant:\nTake a bowl."] * 3, 300))


@pytest.fixture
def token_rows(tmp_path):
    """The rows alone; the ledger lies in `tmp_path`."""

    def made(*arguments):
        with Ledger(tmp_path / "ledger.parquet") as ledger:
            return examples.token_rows(*arguments, ledger)

    return made


def entries(tmp_path):
    rows = read_table(tmp_path / "ledger.parquet", LEDGER).to_pylist()
    return [(row["source"], row["row"], row["reason"]) for row in rows]


def example(question, response, row=1):
    return Instruction([{"role": "user", "content": question}], response, "f.jsonl", row)


def text(form, row, scored):
    ids = [int(index) for index, mark in zip(row.input_ids, row.label_mask, strict=True) if bool(mark) == scored]
    return form.tokenizer.decode(ids)


def test_the_response_and_its_eos_are_scored_and_the_prompt_is_not(form, token_rows, tmp_path):
    [row] = token_rows([example("How?", "Take a bowl.")], form, Limits(64, 32))
    assert text(form, row, scored=False) == "<s>User:\nHow?\nAssistant:\n"
    assert text(form, row, scored=True) == "Take a bowl.</s>"
    assert row.input_ids.dtype == "int32" and row.label_mask.dtype == "bool"
    assert not entries(tmp_path)


def test_a_cut_response_gets_no_eos_and_a_note(form, token_rows, tmp_path):
    whole = token_rows([example("How?", "Take a bowl. " * 9)], form, Limits(500, 32))[0]
    [row] = token_rows([example("How?", "Take a bowl. " * 9)], form, Limits(40, 32))
    assert len(row) == 40
    assert row.input_ids.tolist() == whole.input_ids[:40].tolist()
    assert int(row.input_ids[-1]) != form.tokenizer.eos_token_id
    assert entries(tmp_path) == [("f.jsonl", 1, "response_cut")]


def test_a_prompt_is_cut_from_the_left_and_keeps_its_header(form, token_rows, tmp_path):
    [row] = token_rows([example("How do I bake? " * 20, "Take.")], form, Limits(64, 32))
    prompt = text(form, row, scored=False)
    assert int((~row.label_mask).sum()) == 32
    assert prompt.startswith("<s>") and prompt.endswith("\nAssistant:\n")
    assert entries(tmp_path) == [("f.jsonl", 1, "prompt_cut")]


def test_an_example_without_room_for_its_response_is_dropped_with_its_reason(form, token_rows, tmp_path):
    there = [example("How?", "One."), example("How do I bake? " * 20, "Two.", 2), example("How?", "Three.", 3)]
    rows = token_rows(there, form, Limits(32, 32))
    assert [text(form, row, scored=True) for row in rows] == ["One.</s>", "Three.</s>"]
    assert entries(tmp_path) == [("f.jsonl", 2, "no_scored_token")]


def test_an_example_that_the_template_refuses_is_dropped_and_the_others_stay(form, token_rows, tmp_path):
    refused = Instruction([{"role": "assistant", "content": "Hi."}], "Hello.", "f.jsonl", 1)
    rows = token_rows([refused, example("How?", "So.", 2)], form, Limits(64, 32))
    assert [text(form, row, scored=True) for row in rows] == ["So.</s>"]
    assert entries(tmp_path) == [("f.jsonl", 1, "refused_by_template")]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=5), st.integers(24, 60))
def test_every_example_is_whole_or_in_the_ledger(form, token_rows, tmp_path, sizes, max_length):
    there = [example("How? " * long, "So. " * answer, row) for row, (long, answer) in enumerate(sizes)]
    whole = token_rows(there, form, Limits(10_000, 5_000))
    rows = token_rows(there, form, Limits(max_length, max_length))
    noted = {row for _, row, _ in entries(tmp_path)}
    dropped = [row for _, row, reason in entries(tmp_path) if reason not in examples.CUTS]
    assert len(rows) + len(dropped) == len(there)
    fitting = [row.input_ids.tolist() for row in whole if len(row) <= max_length]
    assert fitting == [whole[row].input_ids.tolist() for row in range(len(there)) if row not in noted]
