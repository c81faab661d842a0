import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.fingerprint import digest
from engine.preferences.formats import prompt_id
from engine.preferences.ledger import Ledger
from engine.preferences.sampling import census, copy_rows, halves, rank, rows_at
from engine.preferences.schema import PAIRS, ROW_GROUP_ROWS, TOKENS, read_table, writer
from engine.preferences.templates import template
from engine.preferences.tokenizing import Limits, tokenize_pairs, train_bpe

Triple = tuple[str, str, str]
FORMS = [template(name, train_bpe(iter(["how do yes no"]), 300)) for name in ("plain", "seed")]
TRIPLES = st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30)


def row(prompt: str, chosen: str, rejected: str, number: int) -> dict[str, object]:
    ids, mask = [1, 2, number], [False, False, True]
    return {
        "pair_id": digest([prompt, chosen, rejected])[:16],
        "prompt_id": prompt_id([{"role": "user", "content": prompt}]),
        "chosen_input_ids": ids,
        "chosen_label_mask": mask,
        "rejected_input_ids": ids,
        "rejected_label_mask": mask,
        "prompt_length": 2,
        "prompt_cut_tokens": 0,
        "chosen_cut_tokens": 0,
        "rejected_cut_tokens": 0,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "source": "s",
        "row": number,
    }


def written(path: Path, triples: list[Triple], group: int = ROW_GROUP_ROWS) -> Path:
    rows = [row(*triple, number) for number, triple in enumerate(triples)]
    with writer(path, TOKENS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=TOKENS), row_group_size=group)
    return path


def distinct(count: int) -> list[Triple]:
    return [(f"prompt {number}", "yes", "no") for number in range(count)]


def split(triples: list[Triple], share: float = 0.3, seed: int = 0) -> tuple[set[Triple], set[Triple]]:
    """The triples of each half."""
    with tempfile.TemporaryDirectory() as folder:
        counted = census(written(Path(folder) / "t.parquet", triples), seed)
    found = halves(counted, share)
    return {triples[at] for at in found.train}, {triples[at] for at in found.evaluation}


@given(old=TRIPLES, new=TRIPLES, seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_adding_rows_never_moves_a_row_between_training_and_evaluation(old, new, seed):
    train, evaluation = split(old, seed=seed)
    train_after, evaluation_after = split(new + old, seed=seed)
    assert not train & evaluation_after and not evaluation & train_after


@given(triples=TRIPLES)
@settings(deadline=None, max_examples=60)
def test_each_usable_pair_is_in_exactly_one_half_and_prompts_never_in_both(triples):
    train, evaluation = split(triples, share=0.5)
    contradicted = {(prompt, a, b) for prompt, a, b in triples if (prompt, b, a) in triples}
    assert train | evaluation == set(triples) - contradicted
    assert not train & evaluation
    assert not {prompt for prompt, _, _ in train} & {prompt for prompt, _, _ in evaluation}


def test_adding_rows_changes_the_chosen_ones_only_in_proportion():
    with tempfile.TemporaryDirectory() as folder:
        few = halves(census(written(Path(folder) / "few", distinct(4_000)), 0), 0.05).train[:2_000]
        many = halves(census(written(Path(folder) / "many", distinct(4_400)), 0), 0.05).train[:2_000]
    staying = len(set(few.tolist()) & set(many.tolist())) / 2_000
    assert staying == pytest.approx(4_000 / 4_400, abs=0.02)


def test_the_held_out_share_is_about_what_was_asked_for():
    _, evaluation = split(distinct(4_000), share=0.05)
    assert len(evaluation) / 4_000 == pytest.approx(0.05, abs=0.012)


def test_another_seed_is_another_split():
    assert split(distinct(200), seed=0)[1] != split(distinct(200), seed=1)[1]


def test_prompts_that_differ_in_case_width_and_space_lie_in_the_same_half():
    variants = ["How do I  bake?", "how do i bake?\n", "ＨＯＷ do I bake?"]
    for seed in range(8):
        train, evaluation = split([(prompt, "yes", "no") for prompt in variants], share=0.5, seed=seed)
        assert not train or not evaluation


WORDS = st.lists(st.sampled_from(["How", "how", "do", "ＤＯ", " ", "\n", "指令:", "User:"]), max_size=4).map(" ".join)
PROMPTS = st.lists(
    st.lists(WORDS, min_size=1, max_size=2).map(
        lambda turns: (
            [{"role": "system", "content": turn} for turn in turns[:-1]] + [{"role": "user", "content": turns[-1]}]
        )
    ),
    max_size=12,
)


@given(prompts=PROMPTS, turned=st.sets(st.integers(0, 11)), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_another_template_holds_out_the_same_pairs_and_sets_the_same_ones_aside(prompts, turned, seed):
    sides = [("no", "yes") if at in turned else ("yes", "no") for at in range(len(prompts))]
    pairs = [
        {"pair_id": digest([prompt, *side])[:16], "prompt": prompt, "chosen": side[0], "rejected": side[1]}
        for prompt, side in zip(prompts, sides, strict=True)
    ]
    rows = [pair | {"source": "s", "row": row} for row, pair in enumerate(pairs)]
    plain, seeds = (_split_by(form, rows, seed) for form in FORMS)
    assert plain == seeds


def _split_by(form, rows, seed):
    """Positions of both halves, and the reasons of those in neither, as the rows tokenized with `form` give them."""
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder) / "ledger") as ledger, writer(Path(folder) / "t", TOKENS) as out:
            batch = pa.RecordBatch.from_pylist(rows, schema=PAIRS)
            for table in tokenize_pairs([batch], form, Limits(500, 250), ledger):
                out.write_table(table)
        counted = census(Path(folder) / "t", seed)
    found = halves(counted, 0.5)
    return found.train.tolist(), found.evaluation.tolist(), counted.reasons


def test_a_rank_is_the_same_on_every_machine():
    assert (rank(0, "a"), rank(1, "a"), rank(0, "é好")) == (
        1574244910681746387,
        5929356027447281426,
        88645983762864226,
    )


def test_later_copies_of_a_pair_are_duplicates(tmp_path):
    counted = census(written(tmp_path / "t", [("p", "a", "b"), ("q", "a", "b"), ("p", "a", "b"), ("p", "a", "b")]), 0)
    assert counted.reasons == {2: "duplicate", 3: "duplicate"}
    assert (counted.count("duplicate"), counted.count("contradiction")) == (2, 0)


def test_both_sides_of_a_contradiction_are_out_with_all_their_copies(tmp_path):
    triples = [("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b"), ("q", "b", "a"), ("p", "a", "c")]
    counted = census(written(tmp_path / "t", triples), 0)
    assert counted.reasons == {0: "contradiction", 1: "contradiction", 2: "contradiction"}


def test_texts_that_only_run_together_alike_are_no_contradiction(tmp_path):
    assert not census(written(tmp_path / "t", [("p", "a", "bc"), ("p", "c", "ab"), ("pa", "c", "b")]), 0).reasons


def test_a_census_holds_no_text_and_few_bytes_a_row(tmp_path):
    rows = 3 * ROW_GROUP_ROWS
    table = written(tmp_path / "t", [(f"prompt {number}", "yes " * 50, "no") for number in range(rows)])
    census(table, 0)  # imports and caches are no part of it
    tracemalloc.start()
    counted = census(table, 0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    batch = ROW_GROUP_ROWS * 4 * 250  # bytes of the texts that are looked at together
    assert len(counted.pair_ranks) == rows
    assert held < 40 * rows and peak < batch + 150 * rows


def test_rows_are_picked_by_position_with_the_columns_asked_for(tmp_path):
    source = written(tmp_path / "t", distinct(50), group=7)
    picked = pa.concat_tables(rows_at(source, np.array([3, 17, 40]), ["row", "chosen"]))
    assert picked.to_pylist() == [{"row": at, "chosen": "yes"} for at in (3, 17, 40)]
    assert not list(rows_at(source, np.array([], dtype=np.int64)))


@given(triples=TRIPLES)
@settings(deadline=None, max_examples=60)
def test_the_reasons_are_those_of_comparing_every_row_with_every_other(triples):
    triples = triples + [(prompt, b, a) for prompt, a, b in triples[::3]]
    with tempfile.TemporaryDirectory() as folder:
        reasons = census(written(Path(folder) / "t", triples), 0).reasons
    expected = {at: "duplicate" for at, triple in enumerate(triples) if triple in triples[:at]}
    expected |= {at: "contradiction" for at, (p, a, b) in enumerate(triples) if (p, b, a) in triples}
    assert reasons == expected and list(reasons) == sorted(reasons)


def test_copied_rows_are_those_asked_for_in_the_order_of_the_source(tmp_path):
    source = written(tmp_path / "t", distinct(50), group=7)
    copy_rows(source, tmp_path / "copy", np.array([40, 3, 17]))
    assert read_table(tmp_path / "copy", TOKENS).to_pylist() == [row(*distinct(50)[at], at) for at in (3, 17, 40)]


def test_a_copy_has_full_row_groups_whatever_the_sources(tmp_path):
    source = written(tmp_path / "t", distinct(2 * ROW_GROUP_ROWS + 10), group=999)
    copy_rows(source, tmp_path / "copy", np.arange(1, 2 * ROW_GROUP_ROWS + 3))
    metadata = pq.read_metadata(tmp_path / "copy")
    sizes = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 2]


def test_a_copy_of_no_rows_is_an_empty_table(tmp_path):
    copy_rows(written(tmp_path / "t", distinct(3)), tmp_path / "copy", np.array([], dtype=np.int64))
    assert read_table(tmp_path / "copy", TOKENS).num_rows == 0


def test_an_empty_table_has_empty_halves(tmp_path):
    found = halves(census(written(tmp_path / "t", []), 0), 0.5)
    assert len(found.train) == len(found.evaluation) == 0


def test_a_table_of_other_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"pair_id": ["a"]}), tmp_path / "t")
    with pytest.raises(DataError, match="other columns"):
        census(tmp_path / "t", 0)
