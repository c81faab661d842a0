from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.artifact import Artifact
from engine.preferences.schema import TOKENS, writer
from engine.reports.data_since import data_parts, data_words
from engine.reports.to_markdown import to_markdown
from engine.store import Store

TALLY = {"sources": {"a.jsonl": 900, "b|c": 100}, "other_sources": 0, "response_lengths": {"1–4": 1000, "5–8": 1000}}
MOVED = TALLY | {"sources": {"a.jsonl": 500, "b|c": 500}}


def tokens(root: Path, ids: list[str], metrics: dict[str, Any] = TALLY) -> Artifact:
    store, key = Store(root), "-".join(ids)
    work = store.work("tokenize", key, fresh=True)
    with writer(work / "pairs.parquet", TOKENS) as out:
        out.write_table(pa.Table.from_pylist([{"pair_id": each} for each in ids], schema=TOKENS))
    return store.seal("tokenize", key, work, {"payload": {}, "metrics": {"pairs": len(ids)} | metrics})


def told(then: Artifact | None, now: Artifact | None) -> str:
    return to_markdown(data_parts(then, now))


def test_data_that_moved_are_shown_with_their_shares(tmp_path: Path) -> None:
    then, now = tokens(tmp_path, ["x", "y"]), tokens(tmp_path, ["y", "z", "w"], MOVED)
    page = told(then, now)
    assert page.startswith("New pairs: 2. Gone: 1. Pairs then and now: 2 and 3.")
    assert "| by source | 40.0% | **moved** |" in page
    assert "| by response length | 0.0% | as it was |" in page
    assert r"| b\|c | 10.0% | 50.0% | +40.0 points |" in page
    assert "| response length | then" not in page
    assert data_words(then, now) == "Other data: 2 new pairs, 1 gone; by source they moved."


def test_the_same_data_and_data_of_which_nothing_is_left_are_not_told(tmp_path: Path) -> None:
    made = tokens(tmp_path, ["x"])
    assert (data_parts(made, made), data_words(made, made)) == ([], "")
    assert (data_parts(None, made), data_words(made, None)) == ([], "")


def test_the_same_pairs_in_another_order_are_called_so(tmp_path: Path) -> None:
    then, now = tokens(tmp_path, ["x", "y"]), tokens(tmp_path, ["y", "x"])
    assert data_words(then, now) == "Other data: the same pairs, in other tokens or another order."


def test_a_new_source_is_named_and_what_its_name_holds_is_text(tmp_path: Path) -> None:
    grown = TALLY | {"sources": TALLY["sources"] | {"n|2*<b>.jsonl": 1500}}
    page = told(tokens(tmp_path, ["x"]), tokens(tmp_path, ["x", "y"], grown))
    assert r"| by source | 60.0% | new source n\|2\*&lt;b&gt;.jsonl, 1,500 pairs |" in page
    assert "**moved**" not in page


def test_a_manifest_alone_still_tells_of_the_shares(tmp_path: Path) -> None:
    then, now = tokens(tmp_path, ["x", "y"]), tokens(tmp_path, ["z"], MOVED)
    (then.path / "pairs.parquet").unlink()
    page = told(then, now)
    assert "new and how many are gone is not known" in page
    assert "then and now: 2 and 1." in page
    assert "| by source | 40.0% | **moved** |" in page
    assert data_words(then, now) == "Other data: how many pairs are new is not known; by source they moved."


def test_a_table_with_other_bytes_than_it_was_sealed_with_is_like_one_that_is_gone(tmp_path: Path) -> None:
    then, now = tokens(tmp_path, ["x" * 9, "y"]), tokens(tmp_path, ["z"])
    table = now.path / "pairs.parquet"
    held = table.read_bytes()
    for broken in (b"PAR1", held[:4] + bytes(200) + held[204:], held[: len(held) // 2]):
        table.write_bytes(broken)
        assert "is not known" in told(then, now)


def test_an_artifact_from_before_the_tally_says_that_shares_are_not_known(tmp_path: Path) -> None:
    page = told(tokens(tmp_path, ["x"], {}), tokens(tmp_path, ["y"]))
    assert "New pairs: 1. Gone: 1." in page
    assert "Shares by source and length are not known" in page
