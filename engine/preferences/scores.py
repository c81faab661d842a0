"""Reference scores on disk, joined to pairs by `pair_id` and never by position."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.errors import DataError
from engine.preferences.pairs import TokenPair
from engine.preferences.schema import ROW_GROUP_ROWS, SCORES, read_table, writer

if TYPE_CHECKING:
    from engine.models.scoring import PairScores


def write_scores(path: Path, pairs: Sequence[TokenPair], scores: Sequence["PairScores"]) -> None:
    """Writes one SCORES row a pair; both sequences run in the same order."""
    with writer(path, SCORES) as file:
        for begin in range(0, len(pairs), ROW_GROUP_ROWS):
            part = slice(begin, begin + ROW_GROUP_ROWS)
            columns = [
                [pair.pair_id for pair in pairs[part]],
                [score.chosen_token_logps for score in scores[part]],
                [score.rejected_token_logps for score in scores[part]],
                [score.chosen_logps for score in scores[part]],
                [score.rejected_logps for score in scores[part]],
            ]
            file.write_table(pa.table(columns, schema=SCORES))


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
