"""The reference scores for TRL: a table of pairs with the columns that its DPO trainer reads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from engine.errors import MissingInputError
from engine.exporting.finished import Finished
from engine.preferences.schema import SCORES, TOKENS, read_rows, read_table, writer

Kind = Literal["parquet", "jsonl"]
_IDS, _REF = pa.list_(pa.int32()), ("ref_chosen_logps", "ref_rejected_logps")
# TRL's names. The scores hold for the ids; the texts are for people and for other tools.
FOR_TRL = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("ref_chosen_logps", pa.float64()),
        ("ref_rejected_logps", pa.float64()),
    ]
)
_READ = ["pair_id", "prompt", "chosen", "rejected", "chosen_input_ids", "rejected_input_ids", "prompt_length"]


def check_scored(finished: Finished) -> None:
    """Raises MissingInputError where the model has no reference scores, or they are gone."""
    if "reference" not in finished.lent:
        raise MissingInputError(
            f"{finished.name} has no reference scores to export",
            expected="the artifact of its reference stage",
            found="none: its loss needs no reference, or they were removed",
            fix="leave --scores out, or make them again: dpo run --until reference",
        )


def write_scores_for_trl(finished: Finished, folder: Path, kind: Kind) -> dict[str, int]:
    """Writes `train` and `eval`, a row a pair: texts, ids, and the sums of the reference's logps in nats.

    `prompt` is the rendered prompt; `prompt_ids` has what the template puts around it, and the responses' ids have
    their end. Cut pairs are as they were scored.

    Returns:
        Rows by file.

    Raises:
        MissingInputError: as `check_scored`.
        DataError, StoreError: a table cannot be read, or is not whole.
    """
    check_scored(finished)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for half in ("train", "eval"):
        batches = _rows(finished, half)
        counts[half] = (_write_parquet if kind == "parquet" else _write_lines)(folder / f"{half}.{kind}", batches)
    return counts


def _rows(finished: Finished, half: str) -> Iterator[list[dict[str, Any]]]:
    scored = read_table(finished.lent["reference"].file(f"{half}.parquet"), SCORES, ["pair_id", *_REF])
    ref = {row["pair_id"]: row for row in scored.to_pylist()}
    for rows in read_rows(finished.inputs["subsample"].file(f"{half}.parquet"), TOKENS, _READ):
        yield [_row(row, ref[row["pair_id"]]) for row in rows if row["pair_id"] in ref]


def _row(pair: Mapping[str, Any], ref: Mapping[str, Any]) -> dict[str, Any]:
    cut = pair["prompt_length"]
    return {
        **{name: pair[name] for name in ("pair_id", "prompt", "chosen", "rejected")},
        "prompt_ids": pair["chosen_input_ids"][:cut],
        "chosen_ids": pair["chosen_input_ids"][cut:],
        "rejected_ids": pair["rejected_input_ids"][cut:],
        **{name: ref[name] for name in _REF},
    }


def _write_parquet(path: Path, batches: Iterator[list[dict[str, Any]]]) -> int:
    count = 0
    with writer(path, FOR_TRL) as file:
        for rows in batches:
            file.write_table(pa.Table.from_pylist(rows, schema=FOR_TRL))
            count += len(rows)
    return count


def _write_lines(path: Path, batches: Iterator[list[dict[str, Any]]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for rows in batches:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            count += len(rows)
    return count
