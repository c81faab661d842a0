"""The Parquet tables that stages hand to each other. Every reader checks the table it gets against these.

Messages are `list<struct<role, content>>`, roles `system`, `user` or `assistant`; the last message of a prompt is
the user's. Token ids are int32. Log-probabilities are in nats: per token float32, sums float64.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import DataError

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

# download: one normalised comparison a row.
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)

# tokenize, and both halves of subsample. `label_mask` is True where a token is scored: the response, EOS included.
# `prompt_length` counts the ids before the first scored one; they are the same ids on both sides.
# `*_cut_tokens` counts the ids that max_length took away. `prompt_id` is that of `formats.prompt_id`: the same for
# prompts that hardly differ, whatever template wrote `prompt`.
TOKENS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_input_ids", pa.list_(pa.int32())),
        ("chosen_label_mask", pa.list_(pa.bool_())),
        ("rejected_input_ids", pa.list_(pa.int32())),
        ("rejected_label_mask", pa.list_(pa.bool_())),
        ("prompt_length", pa.int32()),
        ("prompt_cut_tokens", pa.int32()),
        ("chosen_cut_tokens", pa.int32()),
        ("rejected_cut_tokens", pa.int32()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)

# Rows that a stage refused, cut or set aside. `detail` says what was seen, for people.
LEDGER = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("pair_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

# reference: one row a pair; token lists run over the scored tokens in order. The sums' names are the columns TRL takes.
_LOGPS = [
    ("ref_chosen_token_logps", pa.list_(pa.float32())),
    ("ref_rejected_token_logps", pa.list_(pa.float32())),
    ("ref_chosen_logps", pa.float64()),
    ("ref_rejected_logps", pa.float64()),
]
SCORES = pa.schema([("pair_id", pa.string()), *_LOGPS])

# The same on its way there and for other artifacts to take over, under the row's `scores.row_key`.
SCORED_ROWS = pa.schema([("row_key", pa.binary(16)), *_LOGPS])

# evaluate: one row a held-out pair, and one row a prompt and policy. Logps are plain sums over the response, whatever
# its tokens weigh in the loss; rewards, margin and loss are of what was trained. `refused` is what the rules say,
# `judged_refused` what a judge model says (null where none was asked, or none answered); `kl_per_token` is null for the
# starting policy.
EVALUATED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("policy_chosen_logps", pa.float64()),
        ("policy_rejected_logps", pa.float64()),
        ("ref_chosen_logps", pa.float64()),
        ("ref_rejected_logps", pa.float64()),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
        ("margin", pa.float64()),
        ("loss", pa.float64()),
        ("chosen_scored_tokens", pa.int32()),
        ("rejected_scored_tokens", pa.int32()),
        ("chosen_refuses", pa.bool_()),
        ("truncated", pa.bool_()),
    ]
)

# evaluate, where the loss weighs the tokens beyond the shorter response (LD-DPO): the weighted sums of the same pairs.
WEIGHTED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("policy_chosen_logps", pa.float64()),
        ("policy_rejected_logps", pa.float64()),
        ("ref_chosen_logps", pa.float64()),
        ("ref_rejected_logps", pa.float64()),
    ]
)
GENERATIONS = pa.schema(
    [
        ("policy", pa.string()),
        ("prompt", pa.string()),
        ("kind", pa.string()),
        ("prompt_set", pa.string()),
        ("generation", pa.string()),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
        ("refused", pa.bool_()),
        ("empty", pa.bool_()),
        ("repetitive", pa.bool_()),
        ("right", pa.bool_()),
        ("expects", pa.string()),
        ("repeated_share", pa.float64()),
        ("kl_per_token", pa.float64()),
        ("judged_refused", pa.bool_()),
    ]
)

# compare: one row a pair that both models were judged on. `*_right` is 1, ½ for a tie, or 0, by the rewards that each
# was trained by; the log-ratio margin is of plain sums and without β, so that it means the same whatever those are.
COMPARED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("tonight_right", pa.float64()),
        ("service_right", pa.float64()),
        ("tonight_log_ratio_margin", pa.float64()),
        ("service_log_ratio_margin", pa.float64()),
    ]
)

ROW_GROUP_ROWS = 5_000


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole table, or some of its columns, after its schema was checked.

    Raises:
        DataError: the file is no Parquet file or its columns are not those of `schema`.
    """
    with _opened(path, schema) as file:
        return file.read(columns=list(columns) if columns else None)


def read_batches(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The table in batches of at most `ROW_GROUP_ROWS` rows, so that memory does not grow with the file.

    Raises as `read_table`.
    """
    with _opened(path, schema) as file:
        yield from file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=list(columns) if columns else None)


def read_rows(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Rows as dicts, a batch at a time. Raises as `read_table`."""
    for batch in read_batches(path, schema, columns):
        yield batch.to_pylist()


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer for one of the tables above; write row groups of `ROW_GROUP_ROWS` rows."""
    return pq.ParquetWriter(path, schema, compression="zstd")


def _opened(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # a buffer would come to hold the whole file by its end
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            "a table cannot be read", expected="a Parquet file", found=str(error), where=str(path)
        ) from None
    if not file.schema_arrow.remove_metadata().equals(schema):
        expected, found = ({f"{field.name}: {field.type}" for field in each} for each in (schema, file.schema_arrow))
        file.close()
        raise DataError(
            "a table has other columns than it should",
            expected=", ".join(sorted(expected - found)) or "the same columns in another order",
            found=", ".join(sorted(found - expected)) or "columns missing",
            where=str(path),
        )
    return file
