from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import DataError
from engine.preferences.formats import prompt_id
from engine.preferences.ledger import Ledger
from engine.preferences.schema import LEDGER, PAIRS, TOKENS, read_table
from engine.preferences.templates import Template, template
from engine.preferences.tokenizing import (
    SMALLEST_VOCABULARY,
    TRAINING_CHARACTERS,
    Limits,
    auto_vocab_size,
    evenly,
    fit,
    fit_response,
    tokenize_pairs,
    train_bpe,
)

BOS, EOS = 1, 2
CORPUS = ["User:\nHow do I bake a cake?\nAssistant:\nTake a bowl.\n", "指令:什么\n输出:这个"] * 4
PLAIN, SEED = (template(name, train_bpe(iter(CORPUS), 400)) for name in ("plain", "seed"))
TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(["</s>", "<s></s>", " a ", "\n"])


def pair(prompt: str, chosen: str, rejected: str, row: int = 1) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    texts = {"prompt": messages, "chosen": chosen, "rejected": rejected}
    return {"pair_id": f"id{row}", **texts, "source": "s", "row": row}


def tokenized(rows, limits: Limits, tmp_path: Path, form: Template = PLAIN, batch_rows: int = 5_000):
    batches = pa.Table.from_pylist(rows, schema=PAIRS).to_batches(batch_rows)
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        tables = list(tokenize_pairs(batches, form, limits, ledger))
    return pa.concat_tables(tables).to_pylist(), read_table(tmp_path / "ledger.parquet", LEDGER).to_pylist()


def by_word(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_the_seeds_mask_scores_response_and_eos_and_nothing_else(tmp_path):
    """`P P BOS r1 r2 EOS`; the prompt is two words long, and pad shares the id of unk."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "指令:q": 3, "输出:": 4, "r1": 5, "r2": 6}
    seed = template("seed", by_word(words))
    (row,), _ = tokenized([pair("q", "r1 r2", "r2")], Limits(16, 8), tmp_path, seed)
    assert row["chosen_input_ids"] == [3, 4, 1, 5, 6, 2]
    assert row["chosen_label_mask"] == [False, False, False, True, True, True]
    assert row["rejected_input_ids"] == [3, 4, 1, 6, 2]
    assert row["rejected_label_mask"] == [False, False, False, True, True]
    assert row["prompt_length"] == 3


def test_an_unknown_word_is_scored_although_its_id_is_the_pads(tmp_path):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "r1": 3}
    (row,), _ = tokenized([pair("q", "what r1", "r1")], Limits(16, 8), tmp_path, template("seed", by_word(words)))
    assert row["chosen_input_ids"][-3:] == [0, 3, 2]
    assert row["chosen_label_mask"][-3:] == [True, True, True]


def test_prompt_ids_are_those_that_generation_feeds_the_model(tmp_path):
    row = pair("How do I bake a cake?", "Take a bowl.", "No.")
    (made,), _ = tokenized([row], Limits(256, 128), tmp_path)
    assert made["chosen_input_ids"][: made["prompt_length"]] == PLAIN.prompt_ids([row["prompt"]])[0]
    assert (made["prompt"], made["chosen"], made["source"], made["row"]) == (
        "User:\nHow do I bake a cake?\nAssistant:\n",
        "Take a bowl.",
        "s",
        1,
    )


@given(texts=st.tuples(TEXT, TEXT, TEXT), max_length=st.integers(16, 90), share=st.floats(0.6, 1))
@settings(deadline=None, max_examples=150)
def test_whatever_the_lengths_a_pair_fits_and_its_ends_are_right(texts, max_length, share):
    limits = Limits(max_length, max(int(max_length * share), len(PLAIN.header_ids) + 1))
    (prompt,) = PLAIN.prompt_ids([[{"role": "user", "content": texts[0]}]])
    whole = PLAIN.response_ids(texts[1:])
    made = fit(PLAIN, [prompt], *([ids] for ids in whole), limits)
    (left,), cuts = made.prompts, {name: cut for name, (cut,) in made.cuts.items()}
    assert len(left) <= limits.max_prompt_length
    assert left[0] == BOS and left.count(BOS) == 1
    assert tuple(left[-len(PLAIN.header_ids) :]) == PLAIN.header_ids
    assert len(prompt) == len(left) + cuts["prompt_cut"]
    sides = zip(whole, (*made.chosen, *made.rejected), (cuts["chosen_cut"], cuts["rejected_cut"]), strict=True)
    for ids, kept, cut in sides:
        assert len(left) + len(kept) <= max_length
        assert len(ids) + 1 == len(kept) + cut
        assert kept.count(EOS) == (0 if cut else 1)
        assert kept == ([*ids, EOS] if not cut else ids[: len(kept)])


def test_a_cut_response_gets_no_eos():
    assert fit_response([5, 6, 7], [EOS], 4) == ([5, 6, 7, EOS], 0)
    assert fit_response([5, 6, 7], [EOS], 3) == ([5, 6, 7], 1)
    assert fit_response([5, 6, 7], [EOS], 2) == ([5, 6], 2)


def test_an_end_of_several_tokens_is_whole_or_not_there():
    assert fit_response([5, 6], [8, 9], 3) == ([5, 6], 2)


def test_a_row_has_the_id_of_its_prompt_whatever_the_template_wrote(tmp_path):
    rows = [pair("How  DO I?", "a", "b"), pair("how do i?", "c", "d", 2), pair("why", "a", "b", 3)]
    plain, seed = (tokenized(rows, Limits(64, 32), tmp_path, form)[0] for form in (PLAIN, SEED))
    assert [row["prompt_id"] for row in plain] == [row["prompt_id"] for row in seed]
    assert [row["prompt_id"] for row in plain] == [prompt_id(row["prompt"]) for row in rows]


def test_cuts_are_noted_and_the_pair_stays(tmp_path):
    rows, ledger = tokenized([pair("why " * 50, "x" * 90, "no")], Limits(40, 20), tmp_path)
    assert [entry["reason"] for entry in ledger] == ["prompt_cut", "chosen_cut"]
    assert {(entry["pair_id"], entry["source"], entry["row"]) for entry in ledger} == {("id1", "s", 1)}
    assert rows[0]["prompt_cut_tokens"] > 0 and rows[0]["chosen_cut_tokens"] > 0 and rows[0]["rejected_cut_tokens"] == 0
    assert len(rows[0]["chosen_input_ids"]) == 40
    assert rows[0]["chosen"] == "x" * 90, "the text for people is whole"


def test_a_pair_with_no_room_for_a_response_is_dropped_with_its_reason(tmp_path):
    rows, ledger = tokenized([pair("why " * 50, "a", "b"), pair("why", "a", "b", 2)], Limits(30, 30), tmp_path)
    assert [row["row"] for row in rows] == [2]
    assert [(entry["reason"], entry["row"]) for entry in ledger] == [("no_scored_token", 1)]


def test_a_pair_whose_difference_was_cut_away_is_dropped(tmp_path):
    rows, ledger = tokenized([pair("why", "same " * 40 + "a", "same " * 40 + "b")], Limits(40, 20), tmp_path)
    assert not rows and [entry["reason"] for entry in ledger] == ["equal_after_cut"]


def test_a_pair_that_the_tokenizer_cannot_tell_apart_is_dropped(tmp_path):
    form = template("seed", by_word({"<unk>": 0, "<s>": 1, "</s>": 2}))
    rows, ledger = tokenized([pair("why", "yes", "no")], Limits(40, 20), tmp_path, form)
    assert not rows and [entry["reason"] for entry in ledger] == ["equal_tokens"]


def test_a_row_that_the_template_refuses_is_set_aside_and_the_others_stay(tmp_path):
    broken = pair("why", "a", "b") | {"prompt": [{"role": "assistant", "content": "hello"}]}
    rows, ledger = tokenized([broken, pair("why", "a", "b", 2)], Limits(40, 20), tmp_path)
    assert [row["row"] for row in rows] == [2]
    assert [entry["reason"] for entry in ledger] == ["refused_by_template"]


def test_a_batch_of_no_rows_is_an_empty_table(tmp_path):
    nothing = pa.RecordBatch.from_pylist([], schema=PAIRS)
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        (table,) = tokenize_pairs([nothing], PLAIN, Limits(40, 20), ledger)
    assert table.num_rows == 0 and table.schema.equals(TOKENS)


def mixed(count: int) -> list[dict[str, object]]:
    """Rows that stay whole, are cut, are dropped or are refused, by turns."""
    kinds = [("why", "a bowl", "no"), ("why " * 50, "x" * 90, "no"), ("why", "same " * 40 + "a", "same " * 40 + "b")]
    rows = [pair(f"{at} {kinds[at % 3][0]}", *kinds[at % 3][1:], row=at) for at in range(count)]
    return [row | {"prompt": [] if at % 4 == 3 else row["prompt"]} for at, row in enumerate(rows)]


@given(count=st.integers(1, 30), batch_rows=st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_batches_of_any_size_give_the_same_rows_and_the_same_notes(tmp_path_factory, count, batch_rows):
    rows, limits, folder = mixed(count), Limits(40, 20), tmp_path_factory.mktemp("any")
    whole, noted = tokenized(rows, limits, folder)
    parts, noted_in_parts = tokenized(rows, limits, folder, batch_rows=batch_rows)
    assert parts == whole
    assert sorted(noted_in_parts, key=lambda entry: entry["row"]) == sorted(noted, key=lambda entry: entry["row"])


def test_no_more_than_the_next_batch_is_read_ahead(tmp_path):
    """So that memory does not grow with the data."""
    read = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for at in range(20):
            read += 1
            yield pa.RecordBatch.from_pylist([pair("why", "a", "b", at)], schema=PAIRS)

    with Ledger(tmp_path / "ledger.parquet") as ledger:
        for used, table in enumerate(tokenize_pairs(batches(), PLAIN, Limits(40, 20), ledger), 1):
            assert table["row"].to_pylist() == [used - 1]
            assert read <= used + 1
    assert read == 20


def test_an_error_of_the_reader_reaches_the_caller_after_the_tables_before_it(tmp_path):
    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([pair("why", "a", "b")], schema=PAIRS)
        raise DataError("torn")

    with Ledger(tmp_path / "ledger.parquet") as ledger:
        tables = tokenize_pairs(batches(), PLAIN, Limits(40, 20), ledger)
        assert next(tables).num_rows == 1
        with pytest.raises(DataError, match="torn"):
            next(tables)


def test_a_trained_vocabulary_puts_its_special_tokens_first_and_is_the_same_each_time():
    one, two = train_bpe(iter(CORPUS), 400), train_bpe(iter(CORPUS), 400)
    assert one.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
    assert (one.pad_token_id, one.bos_token_id, one.eos_token_id) == (0, 1, 2)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert SMALLEST_VOCABULARY < len(one) <= 400


def test_a_vocabulary_trained_on_nothing_still_writes_anything():
    tokenizer = train_bpe(iter([]), 300)
    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert tokenizer.decode(tokenizer("好🙂\n")["input_ids"]) == "好🙂\n"


@pytest.mark.parametrize(
    ("characters", "size"),
    [(0, 512), (131_071, 512), (262_143, 512), (262_144, 1024), (500_000, 1024), (2_097_152, 8192), (10**9, 8192)],
)
def test_the_vocabulary_grows_with_the_text_by_powers_of_two(characters, size):
    assert auto_vocab_size(characters) == size


def test_a_large_corpus_is_seen_evenly():
    texts = [f"{number:09}" for number in range(100)]
    assert list(evenly(texts, 900)) == texts
    assert list(evenly(texts, 4 * TRAINING_CHARACTERS)) == texts[::4]
