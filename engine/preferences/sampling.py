"""Which pairs are trained on and which are held out, decided by hashes of the pairs themselves.

A pair is held out when the hash of (seed, prompt_id) falls below the evaluation share, so all pairs of one prompt lie
in the same half. Of each half, those with the lowest hash of (seed, pair_id) are taken. So a row's half depends neither
on the other rows nor on the template, and rows added later displace the chosen ones only in proportion to their number.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.preferences.schema import ROW_GROUP_ROWS, TOKENS, read_batches, writer

_RANKS = 2**64
_ID_COLUMNS = ("pair_id", "prompt_id", "chosen", "rejected")

Positions = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]  # (rows, 2): 16 bytes a row


def rank(seed: int, text: str) -> int:
    """A number in [0, 2**64), as good as random, that depends on `seed` and `text` only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "big")


@dataclass
class Census:
    """What is remembered of each row, in the order of the table: 16 bytes a row.

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
class _Seen:
    """What tells which rows are the same pair and which contradict each other; 33 bytes a row.

    Attributes:
        pairs: hash of each row's pair_id.
        questions: hash of each row's prompt_id and its two responses without their order.
        turned: whether a row prefers the later of the two, as texts are sorted.
    """

    pairs: list[Hashes] = field(default_factory=list)
    questions: list[Hashes] = field(default_factory=list)
    turned: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Takes in the next rows: pair_id, prompt_id, chosen and rejected of each."""
        self.pairs.append(_hashes((pair_id,) for pair_id, _, _, _ in rows))
        self.questions.append(_hashes((prompt_id, *sorted(sides)) for _, prompt_id, *sides in rows))
        self.turned.append(np.array([chosen > rejected for _, _, chosen, rejected in rows], dtype=bool))

    def reasons(self) -> dict[int, str]:
        """Rows to set aside, ascending; a contradiction goes before a duplicate."""
        if not self.pairs:
            return {}
        order, same = _runs(np.concatenate(self.pairs))
        duplicates = order[1:][same]
        order, same = _runs(np.concatenate(self.questions))
        questions = np.empty(len(order), dtype=np.int64)
        questions[order] = np.cumsum(np.concatenate([[False], ~same]))
        turned = np.concatenate(self.turned)
        contradictions = np.isin(questions, questions[turned]) & np.isin(questions, questions[~turned])
        found = dict.fromkeys(duplicates.tolist(), "duplicate")
        found |= dict.fromkeys(np.flatnonzero(contradictions).tolist(), "contradiction")
        return dict(sorted(found.items()))


def census(table: Path, seed: int) -> Census:
    """One pass over a TOKENS table. Raises DataError when it is not one."""
    pair_ranks, prompt_ranks, seen = [], [], _Seen()
    for batch in read_batches(table, TOKENS, _ID_COLUMNS):
        columns = [batch[name].to_pylist() for name in _ID_COLUMNS]
        seen.add(list(zip(*columns, strict=True)))
        pair_ranks.append(_ranks(seed, columns[0]))
        prompt_ranks.append(_ranks(seed, columns[1]))
    return Census(_joined(pair_ranks), _joined(prompt_ranks), seen.reasons())


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
        for group in _row_groups(rows_at(source, np.sort(positions))):
            out.write_table(group, row_group_size=ROW_GROUP_ROWS)


def rows_at(source: Path, positions: Positions, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a TOKENS table at ascending `positions`, or some of their columns, in pieces; memory stays flat."""
    start = 0
    for batch in read_batches(source, TOKENS, columns):
        first, last = np.searchsorted(positions, [start, start + batch.num_rows])
        if first < last:
            picked = batch.take(pa.array(positions[first:last] - start))
            yield pa.Table.from_batches([picked]).replace_schema_metadata(None)
        start += batch.num_rows
        if last == len(positions):
            return


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


def _runs(hashes: Hashes) -> tuple[Positions, npt.NDArray[np.bool_]]:
    """Rows sorted by hash, equal ones in their order, and for each but the first whether it equals the one before."""
    order = np.lexsort(hashes.T)
    ordered = hashes[order]
    return order, (ordered[1:] == ordered[:-1]).all(axis=1)


def _hashes(rows: Iterable[Sequence[str]]) -> Hashes:
    return np.frombuffer(b"".join(_hash(*texts) for texts in rows), dtype=np.uint64).reshape(-1, 2)


def _hash(*texts: str) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.digest()
