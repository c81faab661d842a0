"""Log-probabilities of tokens straight from a model's logits, in nats: the definition, as plain as it can be.

Beside them, what the losses of token weights need: log Σ p² for WPO, and what each token counts under LD-DPO.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor


def token_logps(logits: Tensor, input_ids: Tensor, label_mask: Tensor) -> Tensor:
    """Log-probability of every scored token given what precedes it.

    Position t of the logits predicts token t + 1, so `logits[:, :-1]` is read at `input_ids[:, 1:]` and weighed with
    `label_mask[:, 1:]`. Only scored positions go through the log-softmax, in float32 whatever the logits' dtype.

    Args:
        logits: (R, T, V) floats.
        input_ids, label_mask: (R, T).

    Returns:
        (R, T − 1) float32, zero where no token is scored.
    """
    scored = label_mask[:, 1:]
    chosen = -F.cross_entropy(logits[:, :-1][scored].float(), input_ids[:, 1:][scored], reduction="none")
    return torch.zeros(scored.shape, dtype=torch.float32, device=logits.device).masked_scatter(scored, chosen)


@torch.no_grad()
def log_sum_squares(logits: Tensor) -> Tensor:
    """log Σ_v p_v² of distributions over V tokens, in float32 whatever the logits' dtype, without gradient.

    Args:
        logits: (..., V) floats.

    Returns:
        (...) float32, nats, from −log V (uniform) to 0 (certain).
    """
    return (2 * logits.float().log_softmax(-1)).logsumexp(-1)


def ld_weights(counts: Sequence[int], ld_alpha: float) -> Tensor:
    """What every scored token of pairs counts under LD-DPO: 1 in the part that both sides are long enough for, else α.

    Liu et al. 2024, Length Desensitization in Direct Preference Optimization: of the longer response, what goes beyond
    the shorter one's length is its tail.

    Args:
        counts: scored tokens of 2·B rows, the chosen and the rejected one of each pair in turn.

    Returns:
        (sum of counts,) float64, row by row.
    """
    lengths = torch.tensor(counts, dtype=torch.int64)
    shared = lengths.view(-1, 2).amin(1).repeat_interleave(2)
    begins = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    places = torch.arange(len(begins)) - begins
    weights = torch.ones(len(places), dtype=torch.float64)
    return weights.masked_fill(places >= shared.repeat_interleave(lengths), ld_alpha)
