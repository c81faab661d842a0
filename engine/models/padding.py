"""The padded layout: every response of a pair in a row of its own. The plain one, always right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.preferences.pairs import TokenPair, TokenRow


@dataclass(frozen=True)
class PaddedRows:
    """R right-padded rows, T ids wide.

    Attributes:
        input_ids: (R, T) int64.
        label_mask: (R, T) bool, True where a token is scored; never on padding, whatever the pad id is.
    """

    input_ids: Tensor
    label_mask: Tensor


def pad_pairs(pairs: Sequence[TokenPair], pad_id: int, device: torch.device) -> PaddedRows:
    """Lays B pairs out as 2B rows: the chosen sides first, then the rejected ones in the same order.

    Right padding under a causal model needs no attention mask: no scored token can see a later one.
    """
    return pad_rows([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id, device)


def pad_rows(rows: Sequence[TokenRow], pad_id: int, device: torch.device) -> PaddedRows:
    """Lays R rows out, as wide as the longest of them; the mask is False on padding."""
    shape = len(rows), max(map(len, rows))
    input_ids, label_mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)], label_mask[place, : len(row)] = row.input_ids, row.label_mask
    return PaddedRows(torch.from_numpy(input_ids).to(device), torch.from_numpy(label_mask).to(device))
