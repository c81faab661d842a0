"""f-DPO: what a response is worth when another f-divergence than the reverse KL keeps the policy near its reference.

For a divergence with generator f the implicit reward is β·f′(π_θ/π_ref) (Wang et al. 2024, f-DPO, theorem 1). Each
function here takes u = log π_θ − log π_ref, (B,) nats, and gives f′(eᵘ) up to a constant, which cancels between chosen
and rejected. Where an exponent would go beyond `FARTHEST` it stays there: a response so far out has a finite score and
no slope.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

Divergence = Callable[[Tensor], Tensor]

# Nats that go into an exponential. TRL 1.16.0 has this bound for the α-divergence. e^80 fits into float32, in which the
# slopes of a pair meet those of the model; the slope of a square has two such factors, see `squarable`.
FARTHEST = 80.0


def reverse_kl(logratio: Tensor) -> Tensor:
    """f′(t) = log t + 1: DPO itself."""
    return logratio


def forward_kl(logratio: Tensor) -> Tensor:
    """f′(t) = −1/t, here plus one."""
    return -_expm1(-logratio)


def js_divergence(logratio: Tensor) -> Tensor:
    """f′(t) = log(2t / (t + 1)), of the Jensen–Shannon divergence; it never exceeds log 2."""
    return math.log(2) + F.logsigmoid(logratio)


@dataclass(frozen=True)
class AlphaDivergence:
    """f′(t) = (t^(α − 1) − 1) / (α − 1): the reverse KL at α = 1, which is its limit, and the forward KL at α = 0."""

    coefficient: float

    def __call__(self, logratio: Tensor) -> Tensor:
        """(B,) scores of (B,) logratios."""
        power = self.coefficient - 1
        return logratio if abs(power) < 1e-6 else _expm1(power * logratio) / power


def divergence(name: str, coefficient: float) -> Divergence:
    """By its name in a config; the coefficient is the α of `alpha_divergence`. Raises KeyError for another name."""
    known: dict[str, Divergence] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": js_divergence,
        "alpha_divergence": AlphaDivergence(coefficient),
    }
    return known[name]


def squarable(score: Tensor) -> Tensor:
    """(B,) scores for a loss that squares them: e⁴⁰ in size at most, and without a slope beyond.

    TRL 1.16.0 has no such bound there; its squares overflow float32 from e⁴⁴ on.
    """
    farthest = math.exp(FARTHEST / 2)
    return score.clamp(-farthest, farthest)


def _expm1(exponent: Tensor) -> Tensor:
    return torch.expm1(exponent.clamp(max=FARTHEST))
