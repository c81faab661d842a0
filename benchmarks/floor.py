"""The least arithmetic that the work can be done with, and the rate at which the machine multiplies matrices.

Per pair the prompt's tokens count once. A token costs 2 FLOPs a weight to go forward and 2 to carry the gradient back;
frozen weights need no gradient of their own, the adapter's do. The head counts for scored tokens only. Attention's own
products, norms, softmax and the optimizer are left out, so no program reaches a share of 1.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.workload import LORA_RANK, Shape, prompt_length
from engine.preferences.pairs import TokenPair


@dataclass(frozen=True)
class Tokens:
    """What pairs hold: `unique` tokens (prompt once, chosen, rejected), and those that are `scored`."""

    unique: int
    scored: int


def count_tokens(pairs: Iterable[TokenPair]) -> Tokens:
    """The tokens of all pairs together."""
    unique = scored = 0
    for pair in pairs:
        unique += len(pair.chosen) + len(pair.rejected) - prompt_length(pair)
        scored += pair.chosen.scored_tokens + pair.rejected.scored_tokens
    return Tokens(unique, scored)


def linear_weights(shape: Shape) -> int:
    """Weights of all linear layers but the head: four square ones and three of the feed-forward part a layer."""
    return shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate)


def lora_weights(shape: Shape) -> int:
    """Weights of the adapter on all of them."""
    return shape.layers * LORA_RANK * (4 * 2 * shape.hidden + 3 * (shape.hidden + shape.intermediate))


def train_flops(shape: Shape, tokens: Tokens) -> int:
    """4 N_linear + 6 N_lora a unique token, 4 V H a scored one."""
    head = shape.vocabulary * shape.hidden
    return (4 * linear_weights(shape) + 6 * lora_weights(shape)) * tokens.unique + 4 * head * tokens.scored


def score_flops(shape: Shape, tokens: Tokens) -> int:
    """2 N_linear a unique token, 2 V H a scored one: the reference has no adapter."""
    head = shape.vocabulary * shape.hidden
    return 2 * linear_weights(shape) * tokens.unique + 2 * head * tokens.scored


def matmul_rate(device: str, dtype: str, tries: int = 7) -> float:
    """FLOP/s of the best of several products of square matrices, 2048 wide on a CPU and 8192 on a GPU."""
    import torch

    width = 8_192 if device == "cuda" else 2_048
    left, right = (torch.randn(width, width, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * width**3 / best
