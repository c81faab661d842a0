from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from engine.config import Runtime
from engine.errors import DataError
from engine.fingerprint import digest
from engine.preferences.formats import prompt_id
from engine.preferences.schema import LEDGER, TOKENS, read_table, writer
from engine.stage import Context, Listener
from engine.store import Artifact
from tasks.subsample import Config, run

Triple = tuple[str, str, str]


def distinct(count: int) -> list[Triple]:
    return [(f"prompt {number}", "yes", "no") for number in range(count)]


def row(number: int, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    ids, mask = [1, 7, 2], [False, True, True]
    return {
        "pair_id": digest([prompt, chosen, rejected])[:16],
        "prompt_id": prompt_id([{"role": "user", "content": prompt}]),
        "chosen_input_ids": ids,
        "chosen_label_mask": mask,
        "rejected_input_ids": ids,
        "rejected_label_mask": mask,
        "prompt_length": 1,
        "prompt_cut_tokens": 0,
        "chosen_cut_tokens": 0,
        "rejected_cut_tokens": 0,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "source": "s",
        "row": number,
    }


def made(tmp_path: Path, config: Config, triples: list[Triple], name: str = "work") -> Context[Config]:
    source, work = tmp_path / "tokenize", tmp_path / name
    source.mkdir(exist_ok=True)
    work.mkdir()
    with writer(source / "pairs.parquet", TOKENS) as out:
        rows = [row(number, *triple) for number, triple in enumerate(triples)]
        out.write_table(pa.Table.from_pylist(rows, schema=TOKENS))
    sources: Any = None
    inputs = {"tokenize": Artifact("tokenize", "k", source)}
    ctx = Context("subsample", config, inputs, work, Runtime(), sources, Listener())
    run(ctx)
    return ctx


def copies(ctx: Context[Config], half: str) -> list[dict[str, Any]]:
    return read_table(ctx.work / f"{half}.parquet", TOKENS).to_pylist()


def rows_of(ctx: Context[Config], half: str) -> list[int]:
    return [found["row"] for found in copies(ctx, half)]


def test_n_counts_the_training_pairs_and_rows_keep_the_order_of_the_input(tmp_path):
    ctx = made(tmp_path, Config(pairs=50, eval_share=0.2), distinct(200))
    train, evaluation = rows_of(ctx, "train"), rows_of(ctx, "eval")
    assert len(train) == 50 and train == sorted(train)
    assert evaluation == sorted(evaluation) and not set(train) & set(evaluation)


def test_a_row_is_copied_as_it_is(tmp_path):
    ctx = made(tmp_path, Config(pairs="all", eval_share=0.5), distinct(20))
    found = sorted(copies(ctx, "train") + copies(ctx, "eval"), key=lambda copy: copy["row"])
    assert found == [row(number, *triple) for number, triple in enumerate(distinct(20))]


def test_more_training_pairs_never_take_a_held_out_one(tmp_path):
    few = made(tmp_path, Config(pairs=20, eval_share=0.2), distinct(100), "few")
    every = made(tmp_path, Config(pairs="all", eval_share=0.2), distinct(100), "every")
    assert rows_of(few, "eval") == rows_of(every, "eval")
    assert set(rows_of(few, "train")) < set(rows_of(every, "train"))


def test_a_cap_takes_the_same_held_out_pairs_first(tmp_path):
    capped = made(tmp_path, Config(pairs="all", eval_share=0.3, eval_pairs=5), distinct(100), "capped")
    every = made(tmp_path, Config(pairs="all", eval_share=0.3), distinct(100), "every")
    assert len(rows_of(capped, "eval")) == 5
    assert set(rows_of(capped, "eval")) < set(rows_of(every, "eval"))
    assert rows_of(capped, "train") == rows_of(every, "train")


def test_more_than_there_are_is_an_error_that_says_how_many_there_are(tmp_path):
    with pytest.raises(DataError) as error:
        made(tmp_path, Config(pairs=100, eval_share=0.2), distinct(100))
    there = len(rows_of(made(tmp_path, Config(pairs="all", eval_share=0.2), distinct(100), "every"), "train"))
    assert f"100 training pairs were asked for, and there are {there}" in str(error.value)
    assert '"all"' in error.value.fix
    assert not (tmp_path / "work" / "train.parquet").exists()


def test_an_empty_held_out_half_is_an_error_with_its_way_out(tmp_path):
    with pytest.raises(DataError, match=r"no pair is held out(.|\n)*subsample\.eval_share higher"):
        made(tmp_path, Config(pairs=3, eval_share=0.001), distinct(3))


def test_no_pair_left_to_train_on_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no pair is left to train on"):
        made(tmp_path, Config(pairs="all", eval_share=0.999), distinct(3))


def test_duplicates_and_contradictions_are_out_and_in_the_ledger_and_counted(tmp_path):
    odd = [("p", "a", "b"), ("p", "b", "a"), ("prompt 0", "yes", "no")]
    ctx = made(tmp_path, Config(pairs="all", eval_share=0.3), distinct(40) + odd)
    ledger = read_table(ctx.work / "ledger.parquet", LEDGER).to_pylist()
    assert [(entry["row"], entry["reason"]) for entry in ledger] == [
        (40, "contradiction"),
        (41, "contradiction"),
        (42, "duplicate"),
    ]
    assert ledger[0]["pair_id"] == row(40, *odd[0])["pair_id"] and "other way round" in ledger[0]["detail"]
    assert sorted(rows_of(ctx, "train") + rows_of(ctx, "eval")) == list(range(40))
    counts = {name: ctx.metrics[name] for name in ("pairs_in", "duplicates", "contradictions")}
    assert counts == {"pairs_in": 43, "duplicates": 1, "contradictions": 2}
    assert ctx.metrics["train_pairs"] + ctx.metrics["eval_pairs"] == 40
    assert ctx.metrics["set_aside_share"] == round(3 / 43, 6)


def test_the_same_input_makes_the_same_bytes(tmp_path):
    one, two = (made(tmp_path, Config(pairs="all"), distinct(300), name).work for name in ("one", "two"))
    for file in ("train.parquet", "eval.parquet", "ledger.parquet"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


@pytest.mark.parametrize(
    "wrong", [{"pairs": 0}, {"pairs": "most"}, {"eval_share": 0}, {"eval_share": 1}, {"eval_pairs": 0}], ids=str
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValidationError):
        Config(**wrong)
