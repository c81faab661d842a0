"""What a preference loss is: a function of the logps of all pairs of one optimizer step.

Training needs its value and its derivative with respect to them: `derivative`. Most losses are means over pairs of
something each pair has alone. Such a loss is called once a micro-batch, is told the counts of the whole step, and
returns that micro-batch's contribution: the contributions of a step add up to its loss, whatever the micro-batches
were. A loss that couples pairs (a sort, a mean of something over the step) says so, and is called once with all of
them. The losses themselves lie in the modules beside this one, their names in `loss_table`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
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
    """Log-probabilities of B pairs in nats, and what goes with them.

    Attributes:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (B,) float64 sums over the scored tokens. Under LD-DPO
            the weighted sums, of policy and reference alike. Those of the reference are zero where nothing was scored.
        chosen_tokens, rejected_tokens: (B,) int64 counts of the scored tokens, whatever they weigh; at least one each.
        whole_chosen: (B,) float64 plain sums of the chosen side, where `policy_chosen` is a weighted one; else None.
        weights: (B,) float64 without gradient, what each pair's loss is multiplied by (WPO); None: nothing.
        whole_rejected, whole_ref_chosen, whole_ref_rejected: as `whole_chosen`, of the others. No loss reads them: they
            say how likely the responses are.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    whole_chosen: Tensor | None = None
    weights: Tensor | None = None
    whole_rejected: Tensor | None = None
    whole_ref_chosen: Tensor | None = None
    whole_ref_rejected: Tensor | None = None

    def with_plain(self, policy: Tensor, ref: Tensor | None) -> Self:
        """The same beside their plain sums, (B, 2) each: chosen and rejected. The reference's may be unknown."""
        whole = replace(self, whole_chosen=policy[:, 0], whole_rejected=policy[:, 1])
        return whole if ref is None else replace(whole, whole_ref_chosen=ref[:, 0], whole_ref_rejected=ref[:, 1])

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

    @property
    def plain_chosen(self) -> Tensor:
        """(B,): the policy's plain sums of the chosen side."""
        return self.policy_chosen if self.whole_chosen is None else self.whole_chosen

    @property
    def plain_rejected(self) -> Tensor:
        """(B,): the policy's plain sums of the rejected side."""
        return self.policy_rejected if self.whole_rejected is None else self.whole_rejected

    @property
    def plain_ref_chosen(self) -> Tensor:
        """(B,): the reference's plain sums of the chosen side. Raises ValueError where they are not known."""
        return self._plain_ref(self.ref_chosen, self.whole_ref_chosen)

    @property
    def plain_ref_rejected(self) -> Tensor:
        """(B,): the same of the rejected side."""
        return self._plain_ref(self.ref_rejected, self.whole_ref_rejected)

    def _plain_ref(self, ref: Tensor, whole: Tensor | None) -> Tensor:
        if self.whole_chosen is None:
            return ref
        if whole is None:
            raise ValueError("the sums are weighted, and the plain ones of the reference are not known")
        return whole

    def at(self, pairs: Sequence[int]) -> Self:
        """Some of the pairs, in that order."""
        rows = list(pairs)
        return self._mapped([self], lambda columns: columns[0][rows])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The pairs of several parts, one after another; all of them have the optional columns or none has."""
        return cls._mapped(parts, torch.cat)

    @classmethod
    def _mapped(cls, parts: Sequence[Self], one: Callable[[list[Tensor]], Tensor]) -> Self:
        columns: dict[str, Any] = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        made: dict[str, Any] = {name: None if column[0] is None else one(column) for name, column in columns.items()}
        return cls(**made)


class Loss(Protocol):
    """One term of the training loss."""

    @property
    def preference(self) -> bool:
        """Whether the term tells chosen from rejected responses; one that does not is no part of the step-0 proof."""
        ...

    @property
    def coupled(self) -> bool:
        """Whether what a pair contributes depends on other pairs, so that it must see the whole step at once."""
        ...

    @property
    def reference_free(self) -> bool:
        """Whether the reference's logps play no part in it."""
        ...

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """The contribution of these pairs to the step's loss: a scalar."""
        ...


@dataclass(frozen=True)
class PairLoss(ABC):
    """A loss that is the mean over the step's pairs of one number for each, each times the weight of its pair.

    Attributes:
        beta: what the paper of each loss calls it, if by another name: how dearly leaving the reference is paid for.
    """

    preference: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    reference_free: ClassVar[bool] = False

    beta: float

    @abstractmethod
    def of_pairs(self, logps: PairLogps) -> Tensor:
        """(B,): the loss of each pair, before its weight."""

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        each = self.of_pairs(logps)
        return (each if logps.weights is None else each * logps.weights).sum() / step.pairs


@dataclass(frozen=True)
class Derivative:
    """A loss at some pairs, and its derivative with respect to their policy logps, (B,) each.

    Attributes:
        whole: with respect to `PairLogps.whole_chosen`; None where there is none.
    """

    loss: float
    chosen: Tensor
    rejected: Tensor
    whole: Tensor | None = None

    def surrogate(self, logps: PairLogps) -> Tensor:
        """A scalar with the loss's gradient for whatever the logps were computed from. Its value means nothing."""
        linear = self.chosen * logps.policy_chosen + self.rejected * logps.policy_rejected
        if self.whole is not None and logps.whole_chosen is not None:
            linear = linear + self.whole * logps.whole_chosen
        return linear.sum()

    def at(self, pairs: Sequence[int]) -> "Derivative":
        """Some of the pairs; the loss stays that of all."""
        rows = list(pairs)
        whole = None if self.whole is None else self.whole[rows]
        return Derivative(self.loss, self.chosen[rows], self.rejected[rows], whole)


def derivative(loss: "Loss | WeightedSum", logps: PairLogps, step: StepCounts) -> Derivative:
    """Differentiates a loss at pairs, without reaching through to what their logps were computed from."""
    names = ["policy_chosen", "policy_rejected", *(["whole_chosen"] if logps.whole_chosen is not None else [])]
    leaves = {name: getattr(logps, name).detach().requires_grad_() for name in names}
    with torch.enable_grad():
        value = loss(replace(logps, **leaves), step)
    slopes = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return Derivative(float(value.detach()), *slopes)


@dataclass(frozen=True)
class WeightedSum:
    """Several losses, each times its weight.

    Attributes:
        ld_alpha: what the tokens beyond the shorter response of a pair weigh in the logps it is given (Liu et al. 2024,
            LD-DPO); None: they are plain sums.
        use_weighting: whether it is given the pairs' weights (Zhou et al. 2024, WPO, eq. 2).
    """

    terms: Sequence[tuple[float, Loss]]
    ld_alpha: float | None = None
    use_weighting: bool = False

    @property
    def coupled(self) -> bool:
        """See `Loss`."""
        return any(loss.coupled for _, loss in self.terms)

    @property
    def reference_free(self) -> bool:
        """See `Loss`: whether no term needs the reference."""
        return all(loss.reference_free for _, loss in self.terms)

    def __call__(self, logps: PairLogps, step: StepCounts) -> Tensor:
        """See `Loss`."""
        return sum((weight * loss(logps, step) for weight, loss in self.terms), start=logps.policy_chosen.new_zeros(()))

    def preference_part(self) -> "WeightedSum":
        """Its terms that tell chosen from rejected responses."""
        return replace(self, terms=[(weight, loss) for weight, loss in self.terms if loss.preference])
