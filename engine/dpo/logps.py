"""Log-probabilities of responses under a model: per token in float32, sums in float64, in nats."""

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


def sum_logps(token_logps: Tensor) -> Tensor:
    """(R, T − 1) → (R,): the response's log-probability, accumulated in float64 (float32 where a device has none)."""
    wide = torch.float32 if token_logps.device.type == "mps" else torch.float64
    return token_logps.sum(-1, dtype=wide)
