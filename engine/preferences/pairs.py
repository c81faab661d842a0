"""Tokenized pairs in memory: numpy slices of the Parquet columns, a few bytes a token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.preferences.schema import TOKENS, read_table


@dataclass(frozen=True)
class TokenRow:
    """One prompt and response as the model sees it.

    Attributes:
        input_ids: (T,) int32.
        label_mask: (T,) bool, True where a token is scored.
    """

    input_ids: npt.NDArray[np.int32]
    label_mask: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def scored_tokens(self) -> int:
        """How many tokens are scored."""
        return int(self.label_mask.sum())


@dataclass(frozen=True)
class TokenPair:
    """One comparison: the same prompt ids, then the chosen or the rejected response.

    Attributes:
        prompt_id: the same for prompts that hardly differ; empty where nobody asks.
        truncated: whether any id of the prompt or of a response was cut away.
    """

    pair_id: str
    source: str
    chosen: TokenRow
    rejected: TokenRow
    prompt_id: str = ""
    truncated: bool = False

    @property
    def rows(self) -> tuple[TokenRow, TokenRow]:
        """Chosen, rejected."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Ids of the longer side."""
        return max(len(self.chosen), len(self.rejected))


def shared_length(rows: Sequence[TokenRow]) -> int:
    """How many ids rows begin with in common: the prompt's, and of the responses what they open with alike."""
    shared = min(map(len, rows))
    first = rows[0].input_ids
    for row in rows[1:]:
        differing = np.flatnonzero(first[:shared] != row.input_ids[:shared])
        shared = int(differing[0]) if len(differing) else shared
    return shared


def load_pairs(path: Path) -> list[TokenPair]:
    """The pairs of a TOKENS table, in its order. Raises DataError when the table is not one."""
    sides = ("chosen", "rejected")
    columns = [f"{side}_{part}" for side in sides for part in ("input_ids", "label_mask")]
    cuts = [f"{part}_cut_tokens" for part in ("prompt", *sides)]
    table = read_table(path, TOKENS, ["pair_id", "source", "prompt_id", *columns, *cuts])
    ids = {side: list(_slices(table[f"{side}_input_ids"])) for side in sides}
    masks = {side: list(_slices(table[f"{side}_label_mask"])) for side in sides}
    names = zip(*(table[name].to_pylist() for name in ("pair_id", "source", "prompt_id")), strict=True)
    truncated = np.any([table[name].to_numpy() > 0 for name in cuts], axis=0).tolist()
    return [
        TokenPair(
            pair_id,
            source,
            TokenRow(ids["chosen"][row], masks["chosen"][row]),
            TokenRow(ids["rejected"][row], masks["rejected"][row]),
            prompt_id,
            truncated[row],
        )
        for row, (pair_id, source, prompt_id) in enumerate(names)
    ]


def _slices(column: pa.ChunkedArray) -> Iterator[npt.NDArray]:  # type: ignore[type-arg]
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy()
        yield from (values[begin:end] for begin, end in pairwise(offsets))
