"""Scores pairs under a model: the log-probability of every scored token, and the sums per response."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.dpo.logps import ld_weights
from engine.dpo.losses import PairLogps
from engine.errors import NumericsError
from engine.models.forward import row_logps
from engine.models.memory import shortage_told
from engine.models.passes import Passes
from engine.preferences.pairs import TokenPair


@dataclass(frozen=True)
class PairScores:
    """One pair under one model. Token lists run over the scored tokens in order, float32; sums are float64. Nats."""

    chosen_token_logps: list[float]
    rejected_token_logps: list[float]
    chosen_logps: float
    rejected_logps: float

    def sums(self, ld_alpha: float | None = None) -> tuple[float, float]:
        """The chosen and the rejected sum; with `ld_alpha` those of LD-DPO, the tail of the longer side times α."""
        if ld_alpha is None:
            return self.chosen_logps, self.rejected_logps
        sides = self.chosen_token_logps, self.rejected_token_logps
        shared = min(map(len, sides))
        chosen, rejected = (math.fsum(side[:shared]) + ld_alpha * math.fsum(side[shared:]) for side in sides)
        return chosen, rejected


def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    passes: Passes,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[PairScores]:
    """Scores pairs under inference mode; the scores come in the pairs' order.

    Args:
        model: on its device; eval mode is set and the old mode restored.
        passes: rounding apart, it changes nothing.
        progress: told how many pairs are done after each batch.

    Raises:
        NumericsError: a score is NaN or infinite; names the pairs.
        MemoryShortageError: memory ran out.
    """
    parts = passes.split({row: pair.rows for row, pair in enumerate(pairs)})
    scores = score_parts(model, pairs, parts, passes, progress=progress)
    return [scores[row] for row in range(len(pairs))]


def score_parts(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    parts: Iterable[Sequence[int]],
    passes: Passes,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, PairScores]:
    """The same in given micro-batches, which are positions in `pairs`; the scores come by position.

    Raises as `score_pairs`.
    """
    scores: dict[int, PairScores] = {}
    was_training = model.training
    model.eval()
    try:
        for rows in parts:
            batch = [pairs[row] for row in rows]
            with shortage_told(
                f"{len(batch)} pairs, the first is {batch[0].pair_id}", "lower runtime.score_batch_tokens"
            ):
                scores.update(zip(rows, score_batch(model, batch, passes), strict=True))
            progress(len(scores))
    finally:
        model.train(was_training)
    return scores


@torch.inference_mode()
def score_batch(model: torch.nn.Module, pairs: Sequence[TokenPair], passes: Passes) -> Iterator[PairScores]:
    """The same of one micro-batch, whatever mode the model is in."""
    logps = row_logps(model, [pair.rows for pair in pairs], passes.forward, passes.pad_id)
    sums, tokens = logps.sums().tolist(), logps.by_row()
    broken = sorted({pairs[row // 2].pair_id for row, value in enumerate(sums) if not math.isfinite(value)})
    if broken:
        raise NumericsError(
            "a score is not finite", expected="finite log-probabilities", where=f"pairs {', '.join(broken)}"
        )
    return (PairScores(tokens[at], tokens[at + 1], sums[at], sums[at + 1]) for at in range(0, len(sums), 2))


def policy_logps(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    ref: Tensor,
    passes: Passes,
    *,
    whole_ref: Tensor | None = None,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
) -> PairLogps:
    """Logps of pairs under a policy, with gradient, beside their stored reference logps.

    Args:
        pairs: B pairs.
        ref: (B, 2) float64, chosen and rejected; weighted as the policy's, where those are.
        whole_ref: (B, 2) the same without weights, where `ref` has them.
        ld_alpha: weigh the sums as LD-DPO does.
        use_weighting: give each pair its WPO weight.
    """
    rows = row_logps(model, [pair.rows for pair in pairs], passes.forward, passes.pad_id, squares=use_weighting)
    plain = rows.sums().view(-1, 2)
    sums = plain if ld_alpha is None else rows.sums(ld_weights(rows.counts, ld_alpha)).view(-1, 2)
    counts = torch.tensor(rows.counts, device=plain.device).view(-1, 2)
    found = PairLogps(*sums.unbind(1), *ref.to(plain.device).unbind(1), *counts.unbind(1))
    if use_weighting:
        found = replace(found, weights=rows.likeness().view(-1, 2).prod(1))
    if ld_alpha is None:
        return found
    return found.with_plain(plain, None if whole_ref is None else whole_ref.to(plain.device))
