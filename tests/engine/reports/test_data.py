import shutil

import pyarrow as pa
import pytest

from engine.artifact import HANDED_DOWN, MANIFEST, Artifact
from engine.preferences.ledger import Ledger
from engine.preferences.schema import PAIRS, TOKENS, writer
from engine.reports.data import download_parts, subsample_parts, tokenize_parts
from engine.reports.page import Picture, TokenView
from engine.reports.to_markdown import to_markdown
from engine.store import PRUNED

PAGES = {"download": download_parts, "tokenize": tokenize_parts, "subsample": subsample_parts}
each_page = pytest.mark.parametrize(("stage", "parts"), list(PAGES.items()), ids=list(PAGES))
HOSTILE = "<script>|$x$`](javascript:x)"


def put(artifact, name, schema, rows):
    with writer(artifact.path / name, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema))


def pair(at, source="a.jsonl", chosen="yes indeed"):
    prompt = [{"role": "user", "content": f"question {at}"}]
    return {"pair_id": f"{at}", "prompt": prompt, "chosen": chosen, "rejected": "no", "source": source, "row": at}


def tokens(at, length=4, cut=0, source="a.jsonl"):
    ids, mask = [1] * (3 + length), [False] * 3 + [True] * length
    return {
        "pair_id": f"{at}",
        "prompt_id": f"{at}",
        "chosen_input_ids": ids,
        "chosen_label_mask": mask,
        "rejected_input_ids": ids[:-1],
        "rejected_label_mask": mask[:-1],
        "prompt_length": 3,
        "prompt_cut_tokens": 0,
        "chosen_cut_tokens": cut,
        "rejected_cut_tokens": 0,
        "prompt": f"prompt {at}",
        "chosen": f"of {length}",
        "rejected": "no",
        "source": source,
        "row": at,
    }


def ledger(artifact, *reasons):
    with Ledger(artifact.path / "ledger.parquet") as file:
        for row, reason in enumerate(reasons, 1):
            file.add(reason, source=HOSTILE, row=row, detail=HOSTILE)


@pytest.fixture
def downloaded(seal):
    metrics = {"rows_read": 13, "pairs": 12, "refused": 1, "formats": ["hh-rlhf"]}
    artifact = seal("download", metrics | {"refused_by_reason": {"empty_prompt": 1}})
    put(artifact, "pairs.parquet", PAIRS, [pair(at, "b" if at % 3 else HOSTILE) for at in range(12)])
    ledger(artifact, "empty_prompt")
    return artifact


@pytest.fixture
def tokenized(seal):
    metrics = {"sources": {"a": 9, "b": 3}, "other_sources": 0, "response_lengths": {"1–4": 12, "5–8": 12}}
    artifact = seal("tokenize", {"pairs": 12} | metrics, **{HANDED_DOWN.removesuffix(".json"): {
        "max_length": 12, "max_prompt_length": 4}})  # fmt: skip
    put(artifact, "pairs.parquet", TOKENS, [tokens(at, 2 + at % 7, cut=3 * (at == 5)) for at in range(12)])
    ledger(artifact, "chosen_cut", "equal_tokens")
    return artifact


@pytest.fixture
def drawn(seal, tokenized):
    counted = {"pairs_in": 12, "train_pairs": 6, "eval_pairs": 2, "duplicates": 1, "contradictions": 0}
    artifact = seal("subsample", counted, key="key2", reads=[tokenized])
    put(artifact, "train.parquet", TOKENS, [tokens(at, source="a" if at % 3 else "b") for at in range(6)])
    ledger(artifact, "duplicate")
    return artifact


def pictures(parts):
    return {part.title: part.alt for part in parts if isinstance(part, Picture)}


def test_the_page_of_download_tells_of_rows_reasons_sources_and_lengths(downloaded):
    parts = list(download_parts(downloaded))
    told = to_markdown(parts)
    assert "12 pairs were read, and 1 of 13 rows (7.7%) were refused. Format: hh-rlhf." in told
    assert "**empty prompt** (1): the prompt is empty" in told
    assert pictures(parts)["Where the rows went"] == "kept: 12; empty prompt: 1"
    assert pictures(parts)["Pairs by source"].startswith("b: 8; ")
    assert "chosen: 12" in pictures(parts)["Length of the responses"]
    assert "| chosen | 10 | 10 |" in told


def test_a_format_is_told_with_what_it_was_told_by_and_rows_apart_from_their_pairs(seal):
    recognised = [{"format": "sharegpt", "why": "conversations holds <b>", "sources": 1, "named": ["a"]}]
    counted = {"rows_read": 10, "pairs": 27, "refused": 1, "recognised": recognised, "formats": ["sharegpt"]}
    artifact = seal("download", counted)
    ledger(artifact, "empty_prompt")
    parts = list(download_parts(artifact))
    told = to_markdown(parts)
    assert "27 pairs were read from 9 rows, and 1 of 10 rows (10.0%) were refused." in told
    assert "Format: sharegpt (conversations holds &lt;b&gt;)." in told
    assert pictures(parts)["Where the rows went"] == "kept: 9; empty prompt: 1"


def test_the_page_of_tokenize_tells_of_cuts_drops_lengths_and_shows_a_pair(tokenized):
    parts = list(tokenize_parts(tokenized))
    told = to_markdown(parts)
    assert pictures(parts)["What became of the pairs"] == "whole: 11; with something cut away: 1; equal tokens: 1"
    assert "| chosen responses | 1 | 3 |" in told
    assert "A prompt may have 4 tokens, and 12 together with a response." in told
    assert "cut at 12" in pictures(parts)["Prompt and response together"]
    assert "cut at 4" in pictures(parts)["Length of the prompts"]
    assert "The chosen response is the longer one in 100.0% of the pairs" in told
    assert sum(isinstance(part, TokenView) for part in parts) == 1


def test_the_pair_that_is_shown_is_of_middling_length_not_cut_and_always_the_same(tokenized):
    shown = [[part for part in tokenize_parts(tokenized) if isinstance(part, TokenView)] for _ in range(2)]
    assert shown[0] == shown[1]
    texts = {name: row[0].text for name, row in shown[0][0].rows}
    assert texts == {"prompt": "prompt 2", "chosen": "of 4", "rejected": "no"}


def test_a_pair_that_spells_a_secret_is_not_the_one_that_is_shown(tokenized, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "prompt 2")
    [view] = [part for part in tokenize_parts(tokenized) if isinstance(part, TokenView)]
    assert view.rows[0][1][0].text != "prompt 2"


def test_the_page_of_subsample_holds_shares_after_against_those_before(drawn):
    parts = list(subsample_parts(drawn))
    shown = pictures(parts)
    assert shown["Where the pairs went"] == "to train on: 6; held out to judge by: 2; not drawn: 3; duplicate: 1"
    assert shown["Shares by source"] == ("a: all pairs 75.0%, to train on 66.7%; b: all pairs 25.0%, to train on 33.3%")
    assert "1–4: all pairs 50.0%, to train on 100.0%" in shown["Shares by tokens of the responses"]
    assert "The largest move: 1–4, from 50.0% to 100.0%." in to_markdown(parts)


def test_without_the_artifact_above_the_shares_after_are_told_alone(drawn, tokenized):
    shutil.rmtree(tokenized.path)
    assert pictures(subsample_parts(drawn))["Shares by source"] == "a: 66.7%; b: 33.3%"


@each_page
def test_a_page_survives_an_artifact_without_its_files_or_with_broken_ones(stage, parts, downloaded, tokenized, drawn):
    artifact = {"download": downloaded, "tokenize": tokenized, "subsample": drawn}[stage]
    files = sorted(artifact.path.glob("*.parquet"))
    for file in files:
        file.write_bytes(b"PAR1 broken")
    assert "Something is left out here: a table cannot be read." in to_markdown(parts(artifact))
    for file in files:
        put(artifact, file.name, pa.schema([("other", pa.string())]), [{"other": "column"}])
    assert "Something is left out here" in to_markdown(parts(artifact))
    for file in files:
        file.unlink()
    assert "left out" not in to_markdown(parts(artifact))


@each_page
def test_a_page_survives_empty_tables(stage, parts, downloaded, tokenized, drawn):
    artifact = {"download": downloaded, "tokenize": tokenized, "subsample": drawn}[stage]
    put(artifact, "pairs.parquet", PAIRS if stage == "download" else TOKENS, [])
    put(artifact, "train.parquet", TOKENS, [])
    ledger(artifact)
    assert "left out" not in to_markdown(parts(artifact))


@each_page
def test_a_page_survives_a_manifest_that_records_nothing_or_nonsense(stage, parts, seal):
    assert to_markdown(parts(seal(stage, {}))).count("left out") == 0
    odd = dict.fromkeys(["rows_read", "pairs", "refused", "pairs_in", "train_pairs", "eval_pairs", "duplicates"], "x")
    to_markdown(parts(seal(stage, odd | {"refused_by_reason": {"a": "b"}, "formats": 3, "contradictions": None})))


def test_of_a_removed_artifact_the_page_says_so_and_tells_what_its_manifest_has(downloaded):
    kept = downloaded.path.parents[1] / PRUNED / "download" / downloaded.key
    kept.mkdir(parents=True)
    shutil.copy(downloaded.path / MANIFEST, kept)
    parts = list(download_parts(Artifact("download", downloaded.key, kept, pruned=True)))
    assert parts[0].startswith("Its tables were removed")
    assert pictures(parts) == {"Where the rows went": "kept: 12; empty prompt: 1"}


def test_text_of_the_data_shows_as_text(downloaded):
    told = to_markdown(download_parts(downloaded), pictures=True)
    assert "<script" not in told
    assert "row 1 of &lt;script&gt;\\|$x$\\`\\](javascript:x): &lt;script&gt;" in told


def test_no_page_needs_a_table_wider_than_three_columns(downloaded, tokenized, drawn):
    pages = [*download_parts(downloaded), *tokenize_parts(tokenized), *subsample_parts(drawn)]
    rows = [line for line in to_markdown(pages).splitlines() if line.startswith("|")]
    assert rows and max(line.count("|") for line in rows) == 4
