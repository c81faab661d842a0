"""Which pairs are trained on and which are held out, decided by hashes of the pairs themselves.

A pair is held out when the hash of (seed, prompt_id) falls below the evaluation share, so all pairs of one prompt lie
in the same half. Of each half, those with the lowest hash of (seed, pair_id) are taken. So a row's half depends neither
on the other rows nor on the template, and rows added later displace the chosen ones only in proportion to their number.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from engine.preferences.schema import ROW_GROUP_ROWS, TOKENS, read_rows, writer

_RANKS = 2**64
_ID_COLUMNS = ("pair_id", "prompt_id", "chosen", "rejected")

Positions = npt.NDArray[np.int64]


def rank(seed: int, text: str) -> int:
    """A number in [0, 2**64), as good as random, that depends on `seed` and `text` only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "big")


@dataclass
class Census:
    """What is remembered of each row, in the order of the table. Counting a million rows takes some 300 MB.

    Attributes:
        pair_ranks, prompt_ranks: `rank` of the pair_id and of the prompt_id.
        reasons: position of every row that is set aside, and why: `duplicate` (a row before has its pair_id) or
            `contradiction` (some row prefers the same two responses to the same prompt_id the other way round).
    """

    pair_ranks: npt.NDArray[np.uint64]
    prompt_ranks: npt.NDArray[np.uint64]
    reasons: dict[int, str]

    def count(self, reason: str) -> int:
        """Rows set aside for that reason."""
        return sum(found == reason for found in self.reasons.values())


@dataclass
class _Questions:
    """Gathers, for every (prompt_id, two responses) without order, the rows on either side of it."""

    seen: set[bytes] = field(default_factory=set)
    duplicates: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    sides: dict[bytes, int] = field(default_factory=dict)

    def add(self, pair_id: str, prompt_id: str, chosen: str, rejected: str) -> None:
        """Takes in the next row."""
        identity = _hash(pair_id)
        if identity in self.seen:
            self.duplicates.append(len(self.keys))
        self.seen.add(identity)
        first, second = sorted((chosen, rejected))
        key = _hash(prompt_id, first, second)
        self.keys.append(key)
        self.sides[key] = self.sides.get(key, 0) | (1 if chosen == first else 2)

    def reasons(self) -> dict[int, str]:
        """Rows to set aside, ascending; a contradiction goes before a duplicate."""
        found = dict.fromkeys(self.duplicates, "duplicate")
        found |= {at: "contradiction" for at, key in enumerate(self.keys) if self.sides[key] == 3}
        return dict(sorted(found.items()))


def census(table: Path, seed: int) -> Census:
    """One pass over a TOKENS table. Raises DataError when it is not one."""
    pair_ranks, prompt_ranks, questions = [], [], _Questions()
    for rows in read_rows(table, TOKENS, _ID_COLUMNS):
        for row in rows:
            questions.add(*(row[column] for column in _ID_COLUMNS))
        pair_ranks.append(_ranks(seed, [row["pair_id"] for row in rows]))
        prompt_ranks.append(_ranks(seed, [row["prompt_id"] for row in rows]))
    return Census(_joined(pair_ranks), _joined(prompt_ranks), questions.reasons())


@dataclass(frozen=True)
class Halves:
    """Positions of all rows that may be trained on and of all that are held out, each by ascending rank."""

    train: Positions
    evaluation: Positions


def halves(counted: Census, eval_share: float) -> Halves:
    """Every row that is not set aside, in its half.

    Args:
        eval_share: share of the prompts that is held out, between 0 and 1.
    """
    usable = np.ones(len(counted.pair_ranks), dtype=bool)
    usable[list(counted.reasons)] = False
    held_out = counted.prompt_ranks < np.uint64(min(int(eval_share * _RANKS), _RANKS - 1))
    return Halves(*(_by_rank(counted.pair_ranks, np.flatnonzero(usable & half)) for half in (~held_out, held_out)))


def copy_rows(source: Path, target: Path, positions: Positions) -> None:
    """Writes the rows of a TOKENS table at `positions` into a new one, in the order of `source`; memory stays flat."""
    with writer(target, TOKENS) as out:
        for group in _row_groups(_picked(source, np.sort(positions))):
            out.write_table(group, row_group_size=ROW_GROUP_ROWS)


def _picked(source: Path, positions: Positions) -> Iterator[pa.Table]:
    start = 0
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS):
            first, last = np.searchsorted(positions, [start, start + batch.num_rows])
            if first < last:
                picked = batch.take(pa.array(positions[first:last] - start))
                yield pa.Table.from_batches([picked]).replace_schema_metadata(None)
            start += batch.num_rows


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP_ROWS`, the last one smaller."""
    pending = TOKENS.empty_table()
    for table in tables:
        pending = pa.concat_tables([pending, table])
        while pending.num_rows >= ROW_GROUP_ROWS:
            yield pending.slice(0, ROW_GROUP_ROWS)
            pending = pending.slice(ROW_GROUP_ROWS)
    if pending.num_rows:
        yield pending


def _by_rank(ranks: npt.NDArray[np.uint64], positions: Positions) -> Positions:
    return positions[np.argsort(ranks[positions], kind="stable")]


def _ranks(seed: int, texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.array([rank(seed, text) for text in texts], dtype=np.uint64)


def _joined(parts: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    return np.concatenate(parts) if parts else np.array([], dtype=np.uint64)


def _hash(*texts: str) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.digest()
