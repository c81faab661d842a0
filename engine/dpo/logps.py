"""Log-probabilities of tokens straight from a model's logits, in nats: the definition, as plain as it can be."""

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
