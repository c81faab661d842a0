"""Numbers over held-out pairs: a row for each, and the means over them with intervals, slices and calibration.

`eval_` stands before the names that training has for the same numbers. A row tells all that is needed, so that the
means can be taken anew over some of the pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.evaluation.calibration import calibration, calibration_error
from engine.evaluation.intervals import Floats, Interval, bootstrap_means, paired_difference
from engine.evaluation.slices import slices
from engine.preferences.pairs import TokenPair

if TYPE_CHECKING:
    from engine.dpo.losses import PairLogps, WeightedSum

RIGHT, LONGER = "eval_rewards/accuracies", "eval_longer_wins"
BASELINE, AHEAD = "eval_length_baseline", "eval_beats_length"
CEILING = "eval_beats_length_at_best"  # the low end of the interval of `AHEAD` for a model that is always right
# Of a loss without a reference: what the starting policy's own likelihood puts right, and how many more it is now.
START, BEYOND_START = "start/eval_rewards/accuracies", "eval_beats_start"
START_CEILING = "eval_beats_start_at_best"
_CEILINGS = {AHEAD: CEILING, BEYOND_START: START_CEILING}
SHARES = frozenset({RIGHT, LONGER, START, "eval_ties", "eval_chosen_less_likely"})


@dataclass(frozen=True)
class PairEvaluation:
    """What a policy is worth on held-out pairs.

    Attributes:
        rows: EVALUATED rows.
        numbers: means over the pairs and their counts, by name.
        intervals: 95 % intervals of those that have one.
        slices, calibration: see the modules of these names.
    """

    rows: list[dict[str, Any]]
    numbers: dict[str, float]
    intervals: dict[str, Interval]
    slices: list[dict[str, Any]]
    calibration: list[dict[str, Any]]


def evaluate_pairs(
    pairs: Sequence[TokenPair],
    logps: "PairLogps",
    beta: float,
    loss: "WeightedSum",
    refuses: Sequence[bool],
    seed: int,
) -> PairEvaluation:
    """All there is to say of pairs and their logps, both in the same order.

    Args:
        loss: the one that was trained, without WPO's weights: those are the policy's own, and a loss under them says
            nothing that another model's could be held against.
        refuses: whether the chosen response of each pair is a refusal.
        seed: of the bootstrap.
    """
    return evaluate_rows(pair_rows(pairs, logps, beta, loss, refuses), seed, reference_free=loss.reference_free)


def evaluate_rows(rows: list[dict[str, Any]], seed: int, *, reference_free: bool = False) -> PairEvaluation:
    """The same of EVALUATED rows, be they all or some of an evaluation's; of none there are only the counts.

    Args:
        reference_free: whether their rewards are of the policy's own likelihood. The starting policy then has some
            pairs right, which is told beside it; under a reference its rewards are zero, and all of them are ties.
    """
    prompts = clusters(rows)
    counts: dict[str, float] = {"eval_pairs": len(rows), "eval_prompts": len(set(prompts))}
    if not rows:
        return PairEvaluation(rows, counts, {}, [], [])
    columns = measures(rows) | ({START: start_wins(rows)} if reference_free else {})
    means = {name: float(column.mean()) for name, column in columns.items()}
    ends = bootstrap_means(columns, prompts, seed, SHARES)
    ends |= {BASELINE: _folded(ends[LONGER])} if LONGER in ends else {}
    rivals = {AHEAD: length_rule(columns[LONGER])} | ({BEYOND_START: columns[START]} if reference_free else {})
    ahead = {
        name: paired_difference(columns[RIGHT], rival, prompts, seed, share=True) for name, rival in rivals.items()
    }
    ends |= {
        name: (each.low, each.high) for name, each in ahead.items() if each.low is not None and each.high is not None
    }
    perfect = np.ones(len(rows))
    best = {
        _CEILINGS[name]: paired_difference(perfect, rival, prompts, seed, share=True).low
        for name, rival in rivals.items()
    }
    bins = calibration([row["margin"] for row in rows])
    alone = {BASELINE: max(means[LONGER], 1 - means[LONGER])} | {name: each.value for name, each in ahead.items()}
    alone |= {name: low for name, low in best.items() if low is not None}
    alone |= {"eval_calibration_error": calibration_error(bins)} | counts
    return PairEvaluation(rows, means | alone, ends, slices(rows, columns, prompts, seed, SHARES), bins)


def pair_rows(
    pairs: Sequence[TokenPair], logps: "PairLogps", beta: float, loss: "WeightedSum", refuses: Sequence[bool]
) -> list[dict[str, Any]]:
    """One EVALUATED row a pair; rewards and margins include β, the mean of `loss` is the loss of all pairs at once.

    The logps of a row are plain sums, also under LD-DPO, where its rewards and its loss are of weighted ones.
    """
    from engine.dpo.rewards import rewards

    earned = rewards(logps, beta, reference_free=loss.reference_free)
    numbers = {
        "policy_chosen_logps": logps.plain_chosen.tolist(),
        "policy_rejected_logps": logps.plain_rejected.tolist(),
        "ref_chosen_logps": logps.plain_ref_chosen.tolist(),
        "ref_rejected_logps": logps.plain_ref_rejected.tolist(),
        "chosen_reward": earned.chosen.tolist(),
        "rejected_reward": earned.rejected.tolist(),
        "margin": earned.margins.tolist(),
        "loss": losses(pairs, logps, loss),
    }
    return [
        {
            "pair_id": pair.pair_id,
            "prompt_id": pair.prompt_id,
            "source": pair.source,
            "chosen_scored_tokens": pair.chosen.scored_tokens,
            "rejected_scored_tokens": pair.rejected.scored_tokens,
            "chosen_refuses": refused,
            "truncated": pair.truncated,
        }
        | {name: values[row] for name, values in numbers.items()}
        for row, (pair, refused) in enumerate(zip(pairs, refuses, strict=True))
    ]


def weighted_rows(pairs: Sequence[TokenPair], logps: "PairLogps") -> list[dict[str, Any]]:
    """One WEIGHTED row a pair: the sums that its reward and its loss are of, where those are weighted."""
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    columns = {f"{name}_logps": getattr(logps, name).tolist() for name in names}
    return [
        {"pair_id": pair.pair_id} | {name: values[row] for name, values in columns.items()}
        for row, pair in enumerate(pairs)
    ]


def losses(pairs: Sequence[TokenPair], logps: "PairLogps", loss: "WeightedSum") -> list[float]:
    """What each of N pairs contributes to the loss over all of them at once, times N.

    A loss that couples pairs has no such parts; of it each pair gets the whole.
    """
    from engine.dpo.losses import StepCounts

    counts = StepCounts(len(pairs), sum(pair.chosen.scored_tokens for pair in pairs))
    if loss.coupled:
        return [float(loss(logps, counts))] * len(pairs)
    return [len(pairs) * float(loss(logps.at([row]), counts)) for row in range(len(pairs))]


def measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """What is averaged over pairs: (N,) numbers of the EVALUATED rows by the metric that their mean is.

    Logps and log-ratios are in nats, those per token over the scored tokens of the response. A tie counts one half in
    both accuracies; a pair is one where the two rewards, or lengths, are equal.
    """
    get = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _NUMBERS}
    margin, chosen_tokens, rejected_tokens = (
        get[name] for name in ("margin", "chosen_scored_tokens", "rejected_scored_tokens")
    )
    chosen, rejected = (get[f"policy_{side}_logps"] - get[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
    return {
        "eval_loss": get["loss"],
        "eval_rewards/chosen": get["chosen_reward"],
        "eval_rewards/rejected": get["rejected_reward"],
        RIGHT: _wins(margin),
        "eval_rewards/margins": margin,
        "eval_logps/chosen": get["policy_chosen_logps"],
        "eval_logps/rejected": get["policy_rejected_logps"],
        "eval_ties": (margin == 0).astype(np.float64),
        LONGER: _wins(chosen_tokens - rejected_tokens),
        "eval_log_ratio_per_token/chosen": chosen / chosen_tokens,
        "eval_log_ratio_per_token/rejected": rejected / rejected_tokens,
        "eval_chosen_less_likely": (chosen < 0).astype(np.float64),
    }


def start_wins(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """(N,) whether the starting policy has each pair right by its log-probability a scored token; a tie is one half."""
    chosen, rejected = (
        np.array([row[f"ref_{side}_logps"] / row[f"{side}_scored_tokens"] for row in rows], dtype=np.float64)
        for side in ("chosen", "rejected")
    )
    return _wins(chosen - rejected)


def length_rule(longer_wins: Floats) -> Floats:
    """(N,) whether the better of two rules puts each pair right: the longer response wins, or the shorter one does.

    Args:
        longer_wins: (N,) what the first of them does. Which is better is seen on these very pairs, in its favour.
    """
    return longer_wins if longer_wins.mean() >= 0.5 else 1 - longer_wins


def clusters(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompt of each row: pairs of one prompt depend on each other. A pair without one stands for itself."""
    return [row["prompt_id"] or row["pair_id"] for row in rows]


_NUMBERS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_reward",
    "rejected_reward",
    "margin",
    "loss",
    "chosen_scored_tokens",
    "rejected_scored_tokens",
)


def _wins(lead: Floats) -> Floats:
    return np.asarray((lead > 0) + 0.5 * (lead == 0), dtype=np.float64)


def _folded(longer: Interval) -> Interval:
    """The interval of the better of two rules, the longer or the shorter response wins, from that of the first."""
    low, high = longer
    return max(low, 1 - high, 0.5), max(high, 1 - low)
