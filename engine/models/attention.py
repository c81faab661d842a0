"""Attention over a packed row: every branch of a group sees the group's shared prefix and itself, and nothing else.

It is registered with transformers under `PACKED`; a model switched to it still generates as before, since calls without
spans go to transformers' own SDPA. On the CPU it runs SDPA branch by branch, without a mask the width of the row; on
CUDA it is FlexAttention under a block mask.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "prefix_packed"
_BLOCK = 128  # a block mask's rows; a row of a multiple of it is compiled for a handful of lengths only


class CannotPack(Exception):  # noqa: N818 - a reason for another layout, not an error
    """This model's attention is not what `PACKED` computes; the text says why."""


@dataclass(frozen=True)
class Spans:
    """The groups of a packed row, in order, without gaps.

    Attributes:
        groups: (length of the shared prefix, lengths of the branches) of each group.
        length: the row's, with the padding that CUDA wants at its end.
        group_of, branch_of: (T,) int32: the group of a token, −1 for padding; its branch from 1 on, 0 for the prefix.
    """

    groups: list[tuple[int, list[int]]]
    length: int
    group_of: Tensor = field(repr=False)
    branch_of: Tensor = field(repr=False)

    @classmethod
    def of(cls, groups: list[tuple[int, list[int]]], device: torch.device) -> "Spans":
        """The spans of groups that follow each other."""
        pieces = [(at, number, tokens) for at, group in enumerate(groups) for number, tokens in _pieces(group)]
        used = sum(tokens for _, _, tokens in pieces)
        padding = -used % _BLOCK if device.type == "cuda" else 0
        pieces.append((-1, 0, padding))
        sizes = torch.tensor([tokens for _, _, tokens in pieces])
        columns = (torch.tensor(values, dtype=torch.int32) for values in list(zip(*pieces, strict=True))[:2])
        group_of, branch_of = (column.repeat_interleave(sizes).to(device) for column in columns)
        return cls(groups, used + padding, group_of, branch_of)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which is how far back a token may look."""
        return max(shared + max(branches) for shared, branches in self.groups)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at index `query` attends to the one at `key`; indices broadcast."""
        same = self.group_of[query] == self.group_of[key]
        own = (self.branch_of[key] == 0) | (self.branch_of[key] == self.branch_of[query])
        return same & own & (key <= query)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same for FlexAttention."""
        device = self.group_of.device
        make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
        seen: BlockMask = make(
            lambda batch, head, query, key: self.sees(query, key), None, None, self.length, self.length, device
        )
        return seen


def _pieces(group: tuple[int, list[int]]) -> list[tuple[int, int]]:
    """(0, shared tokens), then (number from 1, tokens) of each branch."""
    shared, branches = group
    return [(0, shared), *enumerate(branches, 1)]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: (1, heads, T, D) in, (1, T, heads, D) out.

    Raises:
        CannotPack: the model asks for something that this attention does not compute.
    """
    if spans is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return plain
    _check(spans, given)
    repeats = query.shape[1] // key.shape[1]
    if query.device.type == "cuda":
        out = _compiled(flex_attention)(
            query, key, value, block_mask=spans.block_mask, scale=given.get("scaling"), enable_gqa=repeats > 1
        )
    else:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
        out = _branch_by_branch(query, key, value, spans, given.get("scaling"), given.get("dropout", 0.0))
    return out.transpose(1, 2), None


def _check(spans: Spans, given: dict[str, Any]) -> None:
    window = given.get("sliding_window")
    if window is not None and window < spans.longest:
        raise CannotPack(f"its attention looks back {window} tokens only, and a row has {spans.longest}")
    for name in ("softcap", "s_aux", "position_bias"):
        if given.get(name) is not None:
            raise CannotPack(f"its attention has `{name}`")


def _branch_by_branch(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None, dropout: float
) -> Tensor:
    """SDPA for each branch of each group. The first one continues the prefix: one causal call for both, as they lie."""
    sizes = [tokens for shared, (first, *rest) in spans.groups for tokens in (shared + first, *rest)]
    pieces = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scale)
    out = []
    for shared, branches in spans.groups:
        first = next(pieces)
        out.append(attend(*first, is_causal=True))
        for own in islice(pieces, len(branches) - 1):
            if own[0].shape[2]:
                seen_key, seen_value = (
                    torch.cat((one[:, :, :shared], two), 2) for one, two in zip(first[1:], own[1:], strict=True)
                )
                out.append(attend(own[0], seen_key, seen_value, attn_mask=_lower_right(own[0], seen_key)))
    return torch.cat(out, 2)


def _lower_right(query: Tensor, key: Tensor) -> Tensor:
    """(queries, keys): 0 where the last tokens of the keys, which are the queries, may look; −∞ elsewhere."""
    queries, keys = query.shape[2], key.shape[2]
    return torch.full((queries, keys), -torch.inf, device=key.device, dtype=key.dtype).triu_(keys - queries + 1)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
