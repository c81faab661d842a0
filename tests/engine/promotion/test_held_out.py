"""Held-out pairs of text, tokenized twice by tokenizers that are trained on the spot."""

import json

import pyarrow as pa
import pytest

from engine.preferences.formats import prompt_id
from engine.preferences.ledger import Ledger
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import LEDGER, PAIRS, TOKENS, read_table, writer
from engine.preferences.templates import template
from engine.preferences.tokenizing import Limits, tokenize_pairs, train_bpe
from engine.promotion.held_out import HeldOut
from engine.promotion.incumbent import Incumbent
from engine.sources import ModelSource
from engine.store import Store

LIMITS = {"template": "plain", "max_length": 90, "max_prompt_length": 50}
NAMES = ["tea", "bread", "soup", "jam"]


def text(at, name):
    prompt = [{"role": "user", "content": f"How is {name} made?"}]
    opening = "" if name in ("tea", "bread") else "That is long to tell: "
    sides = {"chosen": f"{opening}{name} is made well", "rejected": f"{opening}!"}
    row = {"pair_id": f"pair {name}", "prompt": prompt, **sides}
    return row | {"source": "kitchen.jsonl", "row": at}


TEXTS = [text(at, name) for at, name in enumerate(NAMES)]


class Kitchen:
    """Tonight's artifacts, and the model in service with a tokenizer that may be another one."""

    def __init__(self, root, *, vocabulary=300, trained=(), **limits):
        self.store = Store(root)
        self.work = root / "work"
        self.work.mkdir()
        batches = pa.Table.from_pylist([*TEXTS, TEXTS[1]], schema=PAIRS).to_batches()  # one pair stands there twice
        with writer(root / "texts.parquet", PAIRS) as file:
            file.write_table(pa.Table.from_batches(batches))
        ours, held_out = self.tokenized("ours", 300, LIMITS, root)
        theirs, _ = self.tokenized("theirs", vocabulary, LIMITS | limits, root)
        past = [
            {"pair_id": "old", "prompt_id": prompt_id(row["prompt"])} for row in TEXTS if row["pair_id"][5:] in trained
        ]
        download = self.seal("download", "d", {"pairs.parquet": (PAIRS, pa.Table.from_batches(batches))})
        subsample = self.seal("subsample", "ours", {"eval.parquet": (TOKENS, held_out)})
        old = self.seal("subsample", "theirs", {"train.parquet": (TOKENS, pa.Table.from_pylist(past, schema=TOKENS))})
        self.inputs = {"download": download, "tokenize": ours, "subsample": subsample}
        how = {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
        its = {"tokenize": theirs, "subsample": old}
        self.incumbent = Incumbent("v", its, ModelSource(), {}, how, {}, "r")

    def seal(self, stage, key, tables, folder=None):
        work = self.store.work(stage, key)
        if folder:
            folder(work)
        for name, (schema, table) in tables.items():
            with writer(work / name, schema) as file:
                file.write_table(table)
        return self.store.seal(stage, key, work, {"payload": {}, "metrics": {}})

    def tokenized(self, key, vocabulary, limits, root):
        """A tokenize artifact, and the pairs as TOKENS."""
        tokenizer = train_bpe((f"{row['chosen']} {row['rejected']}" for row in TEXTS * 9), vocabulary)
        form = template(limits["template"], tokenizer)
        batches = pa.Table.from_pylist(TEXTS, schema=PAIRS).to_batches()
        with Ledger(root / f"{key}.parquet") as ledger:
            sizes = Limits(limits["max_length"], limits["max_prompt_length"])
            table = pa.concat_tables(tokenize_pairs(batches, form, sizes, ledger))

        def folder(work):
            tokenizer.save_pretrained(work / "tokenizer")
            (work / "handed_down.json").write_text(json.dumps(limits), "utf-8")

        return self.seal("tokenize", key, {"pairs.parquet": (TOKENS, table)}, folder), table

    def held_out(self):
        return HeldOut.of(self.incumbent, self.inputs, self.work)

    def ledger(self):
        return [(row["pair_id"], row["reason"]) for row in read_table(self.work / "ledger.parquet", LEDGER).to_pylist()]


def ids(pairs):
    return [(pair.pair_id, pair.chosen.input_ids.tolist(), pair.rejected.input_ids.tolist()) for pair in pairs]


def test_the_same_tokenizer_and_limits_take_tonights_tokens_as_they_are(tmp_path):
    kitchen = Kitchen(tmp_path)
    found = kitchen.held_out()
    assert found.same_ids
    assert found.service is not None and ids(found.service) == ids(found.tonight)
    assert ids(found.tonight) == ids(load_pairs(kitchen.inputs["subsample"].file("eval.parquet")))
    assert (found.trained_on, found.dropped, kitchen.ledger()) == (0, 0, [])


@pytest.mark.parametrize("vocabulary", [300, 265])
def test_a_pair_whose_prompt_it_was_trained_on_is_left_out_and_entered(tmp_path, vocabulary):
    kitchen = Kitchen(tmp_path, vocabulary=vocabulary, trained=["bread", "jam"])
    found = kitchen.held_out()
    assert [pair.pair_id for pair in found.tonight] == ["pair tea", "pair soup"]
    assert [pair.pair_id for pair in found.service] == ["pair tea", "pair soup"]
    assert found.trained_on == 2
    assert kitchen.ledger() == [("pair bread", "trained_on"), ("pair jam", "trained_on")]


def test_another_tokenizer_writes_the_texts_in_ids_of_its_own_each_pair_once(tmp_path):
    kitchen = Kitchen(tmp_path, vocabulary=265)
    found = kitchen.held_out()
    assert not found.same_ids
    assert [pair.pair_id for pair in found.service] == [f"pair {name}" for name in NAMES]
    assert ids(found.service) == ids(load_pairs(kitchen.incumbent.inputs["tokenize"].file("pairs.parquet")))
    assert ids(found.service) != ids(found.tonight)


def test_a_pair_that_its_limits_leave_nothing_of_is_dropped_for_both(tmp_path):
    kitchen = Kitchen(tmp_path, max_length=23, max_prompt_length=20)  # room for what two of the pairs begin with
    found = kitchen.held_out()
    assert found.dropped == 2
    assert [pair.pair_id for pair in found.tonight] == [pair.pair_id for pair in found.service]
    assert [pair.pair_id for pair in found.service] == ["pair tea", "pair bread"]
    dropped = [pair for pair, reason in kitchen.ledger() if reason == "equal_after_cut"]
    assert dropped == ["pair soup", "pair jam"]


def test_what_is_only_on_the_way_is_not_sealed(tmp_path):
    kitchen = Kitchen(tmp_path, vocabulary=265)
    kitchen.held_out()
    assert [path.name for path in kitchen.work.iterdir() if path.name[0] != "."] == ["ledger.parquet"]
