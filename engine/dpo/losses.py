"""Preference losses. Each is a small frozen class that holds its own hyperparameters.

A loss is a function of the logps of all pairs of one optimizer step. Training needs its value and its derivative with
respect to them: `derivative`. Most losses are sums over pairs. Such a loss is called once a micro-batch, is told the
counts of the whole step, and returns that micro-batch's contribution: the contributions of a step add up to its loss,
whatever the micro-batches were. A loss that couples pairs (a sort, a mean of something over the step) says so, and is
called once with all of them. To add a loss: a class here and a line in `LOSSES`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor


@dataclass(frozen=True)
class StepCounts:
    """What a whole optimizer step holds.

    Attributes:
        pairs: number of pairs.
        chosen_tokens: scored tokens on the chosen side.
    """

    pairs: int
    chosen_tokens: int


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probabilities of B pairs in nats, each (B,) float64."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor

    @property
    def chosen_logratio(self) -> Tensor:
        """(B,): log π_θ − log π_ref of the chosen responses."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_logratio(self) -> Tensor:
        """(B,): the same of the rejected responses."""
        return self.policy_rejected - self.ref_rejected

    @property
    def logratio_margin(self) -> Tensor:
        """(B,): chosen minus rejected logratio; times β it is the margin."""
        return self.chosen_logratio - self.rejected_logratio


class Loss(Protocol):
    """One term of the training loss."""

    @property
    def preference(self) -> bool:
        """Whether the term depends on the pairs' margins alone, so that its value at margin zero is known."""
        ...

    @property
    def coupled(self) -> bool:
        """Whether what a pair contributes depends on other pairs, so that it must see the whole step at once."""
        ...

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """The contribution of these pairs to the step's loss: a scalar."""
        ...


@dataclass(frozen=True)
class Derivative:
    """A loss at some pairs, and its derivative with respect to their policy logps, (B,) each."""

    loss: float
    chosen: Tensor
    rejected: Tensor

    def surrogate(self, logps: PairLogps) -> Tensor:
        """A scalar with the loss's gradient for whatever the logps were computed from. Its value means nothing."""
        return (self.chosen * logps.policy_chosen + self.rejected * logps.policy_rejected).sum()

    def at(self, pairs: Sequence[int]) -> "Derivative":
        """Some of the pairs; the loss stays that of all."""
        return Derivative(self.loss, self.chosen[list(pairs)], self.rejected[list(pairs)])


def derivative(loss: "Loss | WeightedSum", logps: PairLogps, step: StepCounts) -> Derivative:
    """Differentiates a loss at pairs, without reaching through to what their logps were computed from."""
    chosen, rejected = (side.detach().requires_grad_() for side in (logps.policy_chosen, logps.policy_rejected))
    with torch.enable_grad():
        value = loss(PairLogps(chosen, rejected, logps.ref_chosen, logps.ref_rejected), step)
    slopes = torch.autograd.grad(value, (chosen, rejected), materialize_grads=True)
    return Derivative(float(value.detach()), *slopes)


@dataclass(frozen=True)
class Sigmoid:
    """The DPO loss, mean over pairs (Rafailov et al. 2023, eq. 7); with `label_smoothing` ε conservative DPO.

    −(1 − ε) log σ(β·m) − ε log σ(−β·m), m the difference of the logratios (Mitchell 2023, a note on noisy preferences).
    """

    beta: float
    label_smoothing: float = 0.0
    preference: bool = True
    coupled: bool = False

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        margin = self.beta * logps.logratio_margin
        kept = (1 - self.label_smoothing) * F.logsigmoid(margin)
        flipped = self.label_smoothing * F.logsigmoid(-margin)
        return -(kept + flipped).sum() / step.pairs


@dataclass(frozen=True)
class Sft:
    """Negative mean log-probability over the chosen scored tokens of the optimizer step (Pang et al. 2024, eq. 1)."""

    preference: bool = False
    coupled: bool = False

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        return -logps.policy_chosen.sum() / step.chosen_tokens


@dataclass(frozen=True)
class WeightedSum:
    """Several losses, each times its weight."""

    terms: Sequence[tuple[float, Loss]]

    @property
    def coupled(self) -> bool:
        """See `Loss`."""
        return any(loss.coupled for _, loss in self.terms)

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        return sum((weight * loss(logps, step) for weight, loss in self.terms), start=logps.policy_chosen.new_zeros(()))

    def preference_part(self) -> "WeightedSum":
        """Its terms that depend on margins alone."""
        return WeightedSum([(weight, loss) for weight, loss in self.terms if loss.preference])


# name → (β, label smoothing) → loss
LOSSES: dict[str, Callable[[float, float], Loss]] = {
    "sigmoid": lambda beta, label_smoothing: Sigmoid(beta, label_smoothing),
    "sft": lambda beta, label_smoothing: Sft(),
}


def weighted_sum(terms: Iterable[Mapping[str, Any]], beta: float) -> WeightedSum:
    """The loss that a config's list of terms (`name`, `weight`, `label_smoothing`) stands for."""
    return WeightedSum([(term["weight"], LOSSES[term["name"]](beta, term["label_smoothing"])) for term in terms])
