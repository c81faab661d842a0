"""Whether a policy is as often right as it is sure: σ(margin) is the probability that it gives the chosen response."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BINS = 5  # of confidence between one half and 1; more would leave a few pairs to each on a small held-out set


def calibration(margins: Sequence[float]) -> list[dict[str, Any]]:
    """Pairs by confidence, max(p, 1 − p) with p = σ(margin), in bins of equal width between one half and 1.

    Args:
        margins: (N,) chosen minus rejected reward, times β; a pair is right above zero, half right at zero.

    Returns:
        A bin each that holds a pair, the least sure first: `low`, `high`, `pairs`, mean `confidence`, and `accuracy`.
    """
    margin = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = (margin > 0) + 0.5 * (margin == 0)
    edges = np.linspace(0.5, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    return [
        {
            "low": round(float(edges[each]), 6),
            "high": round(float(edges[each + 1]), 6),
            "pairs": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for each in range(BINS)
        if (inside := place == each).any()
    ]


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """The expected calibration error, 0 to 1: the mean gap between confidence and accuracy, weighted by pairs.

    Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", ECE. Of no bins it is 0.
    """
    pairs = sum(each["pairs"] for each in bins)
    return float(sum(each["pairs"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / max(pairs, 1))
