"""How rows of tokens are laid out for the model: padded, prefix-shared, or packed.

A *group* is a sequence of rows that begin with the same tokens: the chosen and the rejected side of a pair, or one
example alone. What they share is computed once: the group becomes shared prefix, rest of the first row, rest of the
second, …; every rest attends to the prefix and to itself, and its positions go on from the prefix.

- `padded`: every row of a group is a row of the batch. Any model can take it.
- `shared`: every group is a row of the batch, under a dense mask. Any model can that honours masks and positions.
- `single`: every row of a group goes through the model alone. For models whose numbers depend on their neighbours'.
- `packed`: all groups are one row without padding. It needs an attention that knows of the groups: `attention.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.models.attention import Spans
from engine.preferences.pairs import TokenRow, shared_length

Group = Sequence[TokenRow]
Layout = Literal["packed", "shared", "padded", "single"]
LAYOUTS: tuple[Layout, ...] = ("packed", "shared", "padded")  # the batches, the fastest first; single rows make none

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Groups as a model takes them. S scored tokens come row by row of the groups, each row's in order.

    Attributes:
        input_ids, position_ids: (R, T) int64.
        attention: who sees whom: None (causal), a mask (R, 1, T, T) bool, or the spans of a packed row.
        places: (S,) indices into R·T: the position that predicts each scored token.
        targets: (S,) the scored tokens.
        counts: scored tokens of each row of the groups.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: Tensor | Spans | None
    places: Tensor
    targets: Tensor
    counts: list[int]


@dataclass(frozen=True)
class _Tree:
    """One group flattened: ids and positions (N,), and per row where each of its tokens went and which are scored."""

    input_ids: _Ints
    position_ids: _Ints
    places: list[_Ints]
    rows: Group
    shared: int

    @property
    def rests(self) -> list[int]:
        return [len(row) - self.shared for row in self.rows]


def size(group: Group, layout: Layout) -> int:
    """Tokens of the batch that a group takes up on its own, padding between its own rows included."""
    if layout == "single":
        return sum(map(len, group))
    if layout == "padded":
        return len(group) * max(map(len, group))
    return sum(map(len, group)) - (len(group) - 1) * shared_length(group)


def lay_out(groups: Sequence[Group], layout: Layout, pad_id: int, device: torch.device) -> Batch:
    """Lays groups out.

    Args:
        pad_id: fills rows up; what it is changes no score.
    """
    if layout == "padded":
        groups = [[row] for group in groups for row in group]
    trees = [_flatten(group) for group in groups]
    lengths = [len(tree.input_ids) for tree in trees]
    if layout == "packed":
        spans = Spans.of([(tree.shared, tree.rests) for tree in trees], device)
        shape, begins = (1, spans.length), [0, *np.cumsum(lengths[:-1]).tolist()]
    else:
        shape = len(trees), max(lengths)
        begins = [row * shape[1] for row in range(len(trees))]
    ids, positions = _filled(trees, begins, shape, pad_id, going_on=layout == "padded")
    places, targets, counts = _scored(trees, begins)
    attention = spans if layout == "packed" else _dense_mask(trees, shape[1]) if layout == "shared" else None
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(positions).to(device),
        attention=attention.to(device) if isinstance(attention, Tensor) else attention,
        places=torch.from_numpy(places).to(device),
        targets=torch.from_numpy(targets).to(device),
        counts=counts,
    )


def _flatten(group: Group) -> _Tree:
    shared = shared_length(group)
    rests = [len(row) - shared for row in group]
    begins = [shared + sum(rests[:at]) for at in range(len(group))]
    first = group[0].input_ids[:shared]
    return _Tree(
        np.concatenate([first, *(row.input_ids[shared:] for row in group)]).astype(np.int64),
        np.concatenate([np.arange(shared), *(np.arange(shared, len(row)) for row in group)]),
        [
            np.concatenate([np.arange(shared), np.arange(begin, begin + rest)])
            for begin, rest in zip(begins, rests, strict=True)
        ],
        group,
        shared,
    )


def _filled(
    trees: Sequence[_Tree], begins: Sequence[int], shape: tuple[int, int], pad_id: int, *, going_on: bool
) -> tuple[_Ints, _Ints]:
    """Ids and positions of the batch. Where padding's positions go on, transformers sees whole rows and needs no mask;
    elsewhere they are 0, since a row of several answers may be longer than the model has positions."""
    ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    positions = np.tile(np.arange(shape[1]), shape[0]) if going_on else np.zeros_like(ids)
    for tree, begin in zip(trees, begins, strict=True):
        ids[begin : begin + len(tree.input_ids)] = tree.input_ids
        positions[begin : begin + len(tree.input_ids)] = tree.position_ids
    return ids.reshape(shape), positions.reshape(shape)


def _scored(trees: Sequence[_Tree], begins: Sequence[int]) -> tuple[_Ints, _Ints, list[int]]:
    """Places and targets of the scored tokens. A row's first token has nothing that predicts it."""
    places, targets, counts = [], [], []
    for tree, begin in zip(trees, begins, strict=True):
        for row, where in zip(tree.rows, tree.places, strict=True):
            before = np.flatnonzero(row.label_mask[1:])
            places.append(begin + where[before])
            targets.append(row.input_ids[before + 1].astype(np.int64))
            counts.append(len(before))
    return np.concatenate(places), np.concatenate(targets), counts


def _dense_mask(trees: Sequence[_Tree], width: int) -> Tensor:
    """(R, 1, T, T) bool, True where a query (third axis) sees a key. Padding sees itself: a row of nothing is NaN."""
    mask = torch.zeros(len(trees), width, width, dtype=torch.bool)
    for row, tree in enumerate(trees):
        ends = np.cumsum([tree.shared, *tree.rests]).tolist()
        mask[row, : ends[-1], : tree.shared] = True
        for begin, end in pairwise(ends):
            mask[row, begin:end, begin:end] = True
    return (mask.tril() | torch.eye(width, dtype=torch.bool))[:, None]
