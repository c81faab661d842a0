from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from engine.dpo.losses import PairLogps


def made(*rows: Sequence[float], tokens: Sequence[tuple[int, int]] = (), **more: Any) -> PairLogps:
    """Rows of policy chosen, policy rejected, ref chosen, ref rejected; `tokens` of both sides, one each untold."""
    counts = torch.tensor(list(tokens) or [(1, 1)] * len(rows)).unbind(-1)
    optional = {name: torch.tensor(column, dtype=torch.float64) for name, column in more.items()}
    return PairLogps(*torch.tensor(rows, dtype=torch.float64).unbind(-1), *counts, **optional)


@pytest.fixture
def logps() -> Callable[..., PairLogps]:
    return made
