"""The step-0 proof: before the first update the policy is the reference, so every margin must be zero.

A fresh adapter changes nothing. If the margins are not zero, the stored scores are not this policy's, and training
would chase the difference. The proof runs in the product, on real pairs, in the training configuration.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel

from engine.dpo.losses import PairLogps
from engine.errors import NumericsError
from engine.preferences.pairs import TokenPair
from engine.training.objectives import PreferenceObjective

# Nats per √(scored tokens) by which two half-precision scorings of a pair in different batches may differ. Measured in
# bfloat16 on random Llamas (docs/log.md): at most 0.006 where predictions are like a trained model's, 0.056 where they
# are wild. Another model's scores differ by a share of every token, which outgrows the square root within a sentence.
_HALF_NATS = 0.1
_AT_THE_EDGES, _DRAWN = 4, 24  # pairs


@dataclass(frozen=True)
class StepZero:
    """What the proof saw.

    Attributes:
        pairs: how many pairs were tried.
        max_margin: largest difference of logratios, in nats (not times β).
        max_difference: largest of a side's difference and of those, in nats.
        tolerance: the smallest tolerance any of them was held to, in nats.
        loss, expected_loss: the preference terms, and their value at zero margin, both under the same WPO weights.
    """

    pairs: int
    max_margin: float
    max_difference: float
    tolerance: float
    loss: float
    expected_loss: float


def rows_to_prove(lengths: Sequence[int], seed: int) -> list[int]:
    """The pairs to try: the 4 longest and the 4 first, where a layout breaks, and 24 more that the seed draws.

    Of n pairs one whose score is stale or corrupted is tried with a probability of at least 24/n; of k such pairs at
    least one with 1 − (1 − k/n)²⁴ or more: 5% of stale pairs go unnoticed in 29 of 100 trainings, 20% in one of 200.

    Args:
        lengths: tokens of each pair.
    """
    everywhere = range(len(lengths))
    longest = sorted(everywhere, key=lambda row: -lengths[row])[:_AT_THE_EDGES]
    drawn = random.Random(f"{seed}:proof").sample(everywhere, min(_DRAWN, len(everywhere)))
    return list(dict.fromkeys([*longest, *everywhere[:_AT_THE_EDGES], *drawn]))


def prove_step_zero(model: PeftModel, objective: PreferenceObjective, rows: Sequence[int], *, dtype: str) -> StepZero:
    """Compares the untrained policy with the stored reference scores, pair by pair, in the objective's micro-batches.

    Held to the tolerance are both logratios of a pair and their difference: a policy that scores both sides higher by
    the same amount is not the reference either. They are the numbers that the loss will be taken of: under LD-DPO both
    the policy's sums and the reference's are weighted, and a tail that counts nothing proves nothing.

    Args:
        rows: which of the objective's pairs to try.
        dtype: the policy's, "float32", "bfloat16" or "float16".

    Raises:
        NumericsError: one of them is not zero within tolerance; says which of the usual causes fits.
    """
    rows = list(rows)
    pairs = [objective.pairs[row] for row in rows]
    logps = objective.all_logps(model, rows)
    gaps = _gaps(logps)
    allowed = [tolerance(pair, scores, dtype) for pair, scores in zip(pairs, objective.ref[rows].tolist(), strict=True)]
    off = [place for place in range(len(rows)) if not gaps[place] <= allowed[place]]  # also when it is NaN
    if off:
        worst = max(off, key=lambda place: gaps[place] / allowed[place])
        raise NumericsError(
            "before the first step the policy is not the reference",
            expected=f"a difference of at most {allowed[worst]:.2g} nats",
            found=f"{gaps[worst]:.4g} nats; {len(off)} of the {len(rows)} pairs tried differ",
            where=f"pair {pairs[worst].pair_id}",
            fix=_cause(model, objective, rows[worst], allowed[worst], every=len(off) == len(rows)),
        )
    counts = objective.counts(rows)
    preference = objective.loss.preference_part()
    zero = replace(logps, policy_chosen=logps.ref_chosen, policy_rejected=logps.ref_rejected)
    return StepZero(
        pairs=len(pairs),
        max_margin=float(logps.logratio_margin.abs().max()),
        max_difference=max(gaps),
        tolerance=min(allowed),
        loss=float(preference(logps, counts)),
        expected_loss=float(preference(zero, counts)),
    )


def tolerance(pair: TokenPair, scores: Sequence[float], dtype: str) -> float:
    """Nats by which two scorings of a pair may differ: rounding in float32, or in half precision over scored tokens."""
    if dtype == "float32":
        return 1e-4 + 1e-7 * sum(map(abs, scores))
    return _HALF_NATS * math.sqrt(pair.chosen.scored_tokens + pair.rejected.scored_tokens)


def _gaps(logps: PairLogps) -> list[float]:
    sides = torch.stack([logps.chosen_logratio, logps.rejected_logratio, logps.logratio_margin])
    gaps: list[float] = sides.abs().amax(0).tolist()
    return gaps


def _cause(model: PeftModel, objective: PreferenceObjective, row: int, allowed: float, *, every: bool) -> str:
    alone = _gaps(objective.all_logps(model, [row]))[0]
    with model.disable_adapter():
        bare = _gaps(objective.all_logps(model, [row]))[0]
    again = "score again with `dpo run --only reference --force`"
    if not bare <= allowed and every:
        return (
            "the stored scores are another model's, for example the base's instead of the SFT policy's: "
            f"name the policy that was scored as model.policy, or {again}"
        )
    if not bare <= allowed:
        return f"the stored scores of this pair are stale: {again}"
    if not alone <= allowed:
        return "the adapter changes the policy before it is trained: it must start at zero; report this"
    return 'the pair scores rightly alone and wrongly in a batch: set runtime.layout = "padded", and report this'
