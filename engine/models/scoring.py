"""Scores pairs under a model: the log-probability of every scored token, and the sums per response."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.dpo.logps import sum_logps, token_logps
from engine.dpo.losses import PairLogps
from engine.errors import NumericsError
from engine.models.padding import pad_pairs
from engine.preferences.batching import by_length
from engine.preferences.pairs import TokenPair


@dataclass(frozen=True)
class PairScores:
    """One pair under one model. Token lists run over the scored tokens in order, float32; sums are float64. Nats."""

    chosen_token_logps: list[float]
    rejected_token_logps: list[float]
    chosen_logps: float
    rejected_logps: float


def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    *,
    batch_pairs: int,
    pad_id: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[PairScores]:
    """Scores pairs under inference mode; the scores come in the pairs' order.

    Args:
        model: on its device, called with `input_ids` (2B, T); eval mode is set and the old mode restored.
        batch_pairs: pairs that go through at once; rounding apart, it changes nothing.
        progress: told how many pairs are done after each batch.

    Raises:
        NumericsError: a score is NaN or infinite; names the pairs.
    """
    scores: dict[int, PairScores] = {}
    was_training = model.training
    model.eval()
    try:
        for rows in by_length([pair.length for pair in pairs], range(len(pairs)), batch_pairs):
            scores.update(zip(rows, _score_batch(model, [pairs[row] for row in rows], pad_id), strict=True))
            progress(len(scores))
    finally:
        model.train(was_training)
    return [scores[row] for row in range(len(pairs))]


@torch.inference_mode()
def _score_batch(model: torch.nn.Module, pairs: Sequence[TokenPair], pad_id: int) -> Iterator[PairScores]:
    device = next(model.parameters()).device
    padded = pad_pairs(pairs, pad_id, device)
    logits = model(input_ids=padded.input_ids, use_cache=False).logits
    per_token = token_logps(logits, padded.input_ids, padded.label_mask)
    sums = sum_logps(per_token).tolist()
    tokens = [row[mask].tolist() for row, mask in zip(per_token.cpu(), padded.label_mask[:, 1:].cpu(), strict=True)]
    half = len(pairs)
    broken = sorted({pairs[row % half].pair_id for row, value in enumerate(sums) if not math.isfinite(value)})
    if broken:
        raise NumericsError(
            "a score is not finite", expected="finite log-probabilities", where=f"pairs {', '.join(broken)}"
        )
    return (PairScores(tokens[row], tokens[half + row], sums[row], sums[half + row]) for row in range(half))


def policy_logps(model: torch.nn.Module, pairs: Sequence[TokenPair], ref: Tensor, pad_id: int) -> PairLogps:
    """Logps of pairs under a policy, with gradient, beside their stored reference logps.

    Args:
        pairs: B pairs.
        ref: (B, 2) float64, chosen and rejected.
    """
    device = next(model.parameters()).device
    padded = pad_pairs(pairs, pad_id, device)
    logits = model(input_ids=padded.input_ids, use_cache=False).logits
    sums = sum_logps(token_logps(logits, padded.input_ids, padded.label_mask))
    chosen, rejected = sums.chunk(2)
    return PairLogps(chosen, rejected, *ref.to(device).unbind(-1))
