"""Rows side by side, filled up to the longest: the plain way, always right, that the layouts are held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.preferences.pairs import TokenRow


@dataclass(frozen=True)
class PaddedRows:
    """R right-padded rows, T ids wide.

    Attributes:
        input_ids: (R, T) int64.
        label_mask: (R, T) bool, True where a token is scored; never on padding, whatever the pad id is.
    """

    input_ids: Tensor
    label_mask: Tensor


def pad_rows(rows: Sequence[TokenRow], pad_id: int, device: torch.device) -> PaddedRows:
    """Lays R rows out, as wide as the longest of them; the mask is False on padding.

    Right padding under a causal model needs no attention mask: no scored token can see a later one.
    """
    shape = len(rows), max(map(len, rows))
    input_ids, label_mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)], label_mask[place, : len(row)] = row.input_ids, row.label_mask
    return PaddedRows(torch.from_numpy(input_ids).to(device), torch.from_numpy(label_mask).to(device))
