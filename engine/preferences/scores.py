"""Reference scores on disk: keyed by what was scored while they are made, joined to pairs by `pair_id` afterwards."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.errors import DataError
from engine.preferences.pairs import TokenPair
from engine.preferences.schema import ROW_GROUP_ROWS, SCORED_ROWS, SCORES, read_batches, writer

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
    import pyarrow.compute as pc

    [row] = rows.filter(pc.field("row_key") == pa.scalar(key, pa.binary(16))).to_pylist()
    return row["ref_chosen_logps"], row["ref_rejected_logps"]


def ref_logps(path: Path, pairs: Sequence[TokenPair], ld_alpha: float | None = None) -> npt.NDArray[np.float64]:
    """(pairs, 2) float64: the chosen and the rejected reference logps of each pair, in nats.

    Args:
        ld_alpha: weigh the tokens as LD-DPO does: the tail of the longer response counts α.

    Raises:
        DataError: a pair has no score; names it.
    """
    scored, both = _scored_sums(path, ld_alpha)
    place = {pair_id: row for row, pair_id in enumerate(scored)}
    unscored = [pair.pair_id for pair in pairs if pair.pair_id not in place]
    if unscored:
        raise DataError(
            f"{len(unscored)} of {len(pairs)} pairs have no reference score",
            found=f"pair {unscored[0]}",
            where=str(path),
            fix="score again: dpo run --only reference --force",
        )
    return np.asarray(both[[place[pair.pair_id] for pair in pairs]], dtype=np.float64)


_SUMS = ("ref_chosen_logps", "ref_rejected_logps")
_TOKENS = ("ref_chosen_token_logps", "ref_rejected_token_logps")


def _scored_sums(path: Path, ld_alpha: float | None) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Every row's pair_id and its two sums; the tokens of a whole table are never held at once."""
    names = _SUMS if ld_alpha is None else _TOKENS
    pair_ids: list[str] = []
    both = [np.empty((0, 2))]
    for batch in read_batches(path, SCORES, ["pair_id", *names]):
        chosen, rejected = (batch.column(name) for name in names)
        pair_ids += batch.column("pair_id").to_pylist()
        both.append(np.stack([chosen, rejected], axis=1) if ld_alpha is None else _ld_sums(chosen, rejected, ld_alpha))
    return pair_ids, np.concatenate(both)


def _ld_sums(chosen: pa.ListArray, rejected: pa.ListArray, ld_alpha: float) -> npt.NDArray[np.float64]:
    """(rows, 2): every row's tokens up to the shorter side's length, and α times those beyond it."""
    import pyarrow.compute as pc

    sides = [(pc.list_value_length(side).to_numpy(), side.flatten().to_numpy()) for side in (chosen, rejected)]
    shared = np.minimum(sides[0][0], sides[1][0])
    columns = []
    for counts, values in sides:
        owner = np.repeat(np.arange(len(counts)), counts)
        tail = np.arange(len(values)) - (np.cumsum(counts) - counts)[owner] >= shared[owner]
        columns.append(np.bincount(owner, np.where(tail, ld_alpha, 1.0) * values, minlength=len(counts)))
    return np.stack(columns, axis=1)
