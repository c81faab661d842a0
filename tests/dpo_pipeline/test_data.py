import json

import pytest

import dpo_pipeline as dpo
from engine.errors import ConfigError, DataError


def test_pairs_and_refused_rows_come_as_tables_and_nothing_is_left_behind(folder):
    before = sorted(folder.iterdir())
    pairs, refused = dpo.read_pairs(folder / "mine.jsonl")
    assert pairs.column("prompt")[0].as_py() == [{"role": "user", "content": "How do I bake a cake?"}]
    assert pairs.column("rejected").to_pylist() == ["No.", "Nein."]
    assert refused.column("row").to_pylist() == [3]
    assert sorted(folder.iterdir()) == before


def test_the_keys_of_the_profile_are_taken(folder):
    row = {"question": "a", "good": "b", "bad": "c"}
    (folder / "other.json").write_text(json.dumps([row, row]), "gb18030")
    fields = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    pairs, _ = dpo.read_pairs(["other.json"], fields=fields, encoding="gb18030", max_rows=1)
    assert (pairs.num_rows, pairs.column("chosen")[0].as_py()) == (1, "b")
    assert dpo.read_pairs(embedded_pairs=3)[0].num_rows == 3


def test_what_cannot_be_read_is_refused_with_words(folder):
    with pytest.raises(ConfigError, match=r"unknown key `download\.encodin`"):
        dpo.read_pairs("mine.jsonl", encodin="utf-8")
    with pytest.raises(ConfigError, match=r"`download\.encoding` cannot be 'nothing'"):
        dpo.read_pairs("mine.jsonl", encoding="nothing")
    with pytest.raises(ConfigError) as error:
        dpo.read_pairs("nowhere.jsonl")
    assert "nowhere.jsonl" in str(error.value)
    with pytest.raises(ConfigError, match="does not hold together"):
        dpo.read_pairs()
    (folder / "odd.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="`prompt`, `chosen` and `rejected` are missing"):
        dpo.read_pairs("odd.jsonl")


def test_it_reads_what_the_stage_reads(folder):
    whole = "\n".join(json.dumps({"prompt": str(row), "chosen": "a", "rejected": "ab"[row % 2]}) for row in range(20))
    (folder / "many.jsonl").write_text(whole)
    wanted = {"download.embedded_pairs": 0, "download.files": "many.jsonl", "download.refused_share": 1}
    run = dpo.run("demo", wanted, only="download")
    pairs, refused = dpo.read_pairs("many.jsonl")
    assert pairs.num_rows == refused.num_rows == 10
    assert pairs.to_pylist() == run.table("download", "pairs").to_pylist()
    assert refused.to_pylist() == run.table("download", "ledger").to_pylist()
