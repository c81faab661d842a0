"""Reference scores on disk: keyed by what was scored while they are made, joined to pairs by `pair_id` afterwards."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import DataError
from engine.preferences.pairs import TokenPair
from engine.preferences.schema import ROW_GROUP_ROWS, SCORED_ROWS, SCORES, read_table, writer

if TYPE_CHECKING:
    from engine.models.scoring import PairScores


def row_key(pair: TokenPair) -> bytes:
    """16 bytes that depend on the ids and the label masks of both sides, and on nothing else."""
    whole = hashlib.blake2b(digest_size=16)
    for row in pair.rows:
        whole.update(len(row).to_bytes(8, "little"))
        whole.update(row.input_ids.astype("<i4").tobytes())
        whole.update(np.packbits(row.label_mask).tobytes())
    return whole.digest()


def scored_rows(keys: Sequence[bytes], scores: Sequence["PairScores"]) -> pa.Table:
    """A SCORED_ROWS table; both sequences run in the same order."""
    columns = [
        list(keys),
        [score.chosen_token_logps for score in scores],
        [score.rejected_token_logps for score in scores],
        [score.chosen_logps for score in scores],
        [score.rejected_logps for score in scores],
    ]
    return pa.table(columns, schema=SCORED_ROWS)


def write_scores(path: Path, pair_ids: Sequence[str], keys: Sequence[bytes], rows: pa.Table) -> None:
    """Writes one SCORES row a pair, taken from SCORED_ROWS by the pair's key; both sequences run in the same order.

    Raises:
        KeyError: a key has no row.
    """
    place = {key: row for row, key in enumerate(rows["row_key"].to_pylist())}
    logps = rows.drop_columns("row_key")
    with writer(path, SCORES) as file:
        for begin in range(0, len(pair_ids), ROW_GROUP_ROWS):
            part = slice(begin, begin + ROW_GROUP_ROWS)
            taken = logps.take([place[key] for key in keys[part]])
            file.write_table(taken.add_column(0, SCORES.field("pair_id"), [pair_ids[part]]).cast(SCORES))


def scores_of(rows: pa.Table, key: bytes) -> tuple[float, float]:
    """The chosen and the rejected sum of one row of SCORED_ROWS, in nats."""
    [row] = rows.filter(pc.field("row_key") == pa.scalar(key, pa.binary(16))).to_pylist()
    return row["ref_chosen_logps"], row["ref_rejected_logps"]


def ref_logps(path: Path, pairs: Sequence[TokenPair]) -> npt.NDArray[np.float64]:
    """(pairs, 2) float64: `ref_chosen_logps`, `ref_rejected_logps` of each pair, in nats.

    Raises:
        DataError: a pair has no score; names it.
    """
    table = read_table(path, SCORES, ["pair_id", "ref_chosen_logps", "ref_rejected_logps"])
    place = {pair_id: row for row, pair_id in enumerate(table["pair_id"].to_pylist())}
    unscored = [pair.pair_id for pair in pairs if pair.pair_id not in place]
    if unscored:
        raise DataError(
            f"{len(unscored)} of {len(pairs)} pairs have no reference score",
            found=f"pair {unscored[0]}",
            where=str(path),
            fix="score again: dpo run --only reference --force",
        )
    both = np.stack([table["ref_chosen_logps"].to_numpy(), table["ref_rejected_logps"].to_numpy()], axis=1)
    return np.asarray(both[[place[pair.pair_id] for pair in pairs]], dtype=np.float64)
