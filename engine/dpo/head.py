"""The language-model head at scored positions only: logps and their gradient without a (tokens, vocabulary) tensor.

The head's product is the dearest part of a step in time and memory. It is computed a chunk of tokens at a time, and
while a chunk's probabilities are there, the gradient with respect to its hidden states is taken as well:
d logp / d h = W[target] − Σ_v p_v W[v]. So the backward pass is one multiplication by what comes from above. Whoever
asks gets log Σ_v p_v² of the same probabilities as well, which takes one more look at them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CPU_ELEMENTS = 2**21  # of a chunk of logits: 8 MiB stay near a core
_DEVICE_ELEMENTS = 2**27  # a GPU wants long products


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: softcap(scale · (h Wᵀ + b)).

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: factor on the logits (Cohere's logit_scale, one over Granite's logits_scaling).
        softcap: c of c · tanh(logits / c) (Gemma 2, section 2), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def capped(self, logits: Tensor) -> Tensor:
        """Raw logits (S, V), h Wᵀ + b, as the model means them."""
        scaled = logits * self.scale if self.scale != 1.0 else logits
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def target_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Log-probability of a token after each hidden state.

    Products are taken in the weight's dtype, the log-softmax in float32. Gradient reaches the hidden states, and the
    head where it is trained.

    Args:
        hidden: (S, H).
        targets: (S,) int64.

    Returns:
        (S,) float32, nats.
    """
    return _through(hidden, head, targets, squares=False)[0]


def target_logps_and_squares(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`target_logps`, and log Σ_v p_v² of the distribution that each target was drawn against.

    The second is the logarithm of how likely a token is that the model draws itself, on average; WPO (Zhou et al. 2024)
    holds the first against it. Taken in float32, and without gradient.

    Returns:
        (S,) float32 each, nats.
    """
    return _through(hidden, head, targets, squares=True)


def _through(hidden: Tensor, head: Head, targets: Tensor, *, squares: bool) -> tuple[Tensor, Tensor]:
    """Both of them; the second is empty where nobody asked."""
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if not (trained and torch.is_grad_enabled()):
        whole: tuple[Tensor, Tensor] = _FrozenHead.apply(hidden, head, targets, squares)  # type: ignore[no-untyped-call]
        return whole
    parts = zip(*(torch.split(each, _chunk(head.weight)) for each in (hidden, targets)), strict=True)
    found = [_TrainedHead.apply(h, head.weight, head.bias, head, t, squares) for h, t in parts]  # type: ignore[no-untyped-call]
    return torch.cat([logps for logps, _ in found]), torch.cat([each for _, each in found])


def _chunk(weight: Tensor) -> int:
    """Tokens whose logits are there at once."""
    on_cpu = weight.device.type == "cpu"
    return max(64 if on_cpu else 256, (_CPU_ELEMENTS if on_cpu else _DEVICE_ELEMENTS) // len(weight))


def _logits(hidden: Tensor, head: Head, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(S, V) float32 of one chunk."""
    raw = torch.mm(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())
    return head.capped(raw.float())


@dataclass(frozen=True)
class _Normalized:
    """One chunk of S tokens: logps of the targets (S,), sums of exponentials (S, 1), log Σ p² (S,), or (0,) unasked."""

    logps: Tensor
    total: Tensor
    squares: Tensor


def _normalize(logits: Tensor, targets: Tensor, *, squares: bool) -> _Normalized:
    """Takes logits to probabilities; in their place it leaves (p − onehot(target)) · sum.

    At the target that is minus the sum of the others, taken before the target's own is added: where the target is
    nearly certain, little is left, and it keeps its digits.
    """
    at = targets[:, None]
    own, peak = logits.gather(1, at), logits.amax(1, keepdim=True)
    exps = logits.sub_(peak).exp_()
    norm = torch.linalg.vector_norm(exps, dim=1) if squares else exps.new_empty(0)  # at least 1, the peak's own
    own_exp = exps.gather(1, at)
    others = exps.scatter_(1, at, 0.0).sum(1, keepdim=True)
    exps.scatter_(1, at, -others)
    total = own_exp + others
    log_total = total.log()
    logps = (own - peak - log_total).squeeze(1)
    return _Normalized(logps, total, 2 * (norm.log() - log_total.squeeze(1)) if squares else norm)


def _slope(logits: Tensor, head: Head) -> Tensor | None:
    """Derivative of the capped logits with respect to the scaled ones, where that is not 1."""
    return None if head.softcap is None else 1 - (logits / head.softcap).square()


class _FrozenHead(torch.autograd.Function):
    """Gradient for the hidden states only, taken in the forward pass; what is kept is as large as the hidden states."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, squares: bool) -> tuple[Tensor, Tensor]:
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        squared = torch.empty_like(logps) if squares else logps.new_empty(0)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        size = _chunk(head.weight)
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            logits = _logits(hidden[part], head, head.weight, head.bias)
            slope = _slope(logits, head) if gradient is not None else None
            found = _normalize(logits, targets[part], squares=squares)
            logps[part] = found.logps
            if squares:
                squared[part] = found.squares
            if gradient is not None:
                gradient[part] = _hidden_gradient(logits, found.total, slope, head)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(squared)
        return logps, squared

    @staticmethod
    def backward(ctx: Any, above: Tensor, _: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * above[:, None].to(gradient.dtype), None, None, None


def _hidden_gradient(away: Tensor, total: Tensor, slope: Tensor | None, head: Head) -> Tensor:
    """(S, H): d logp / d hidden = (onehot(target) − p) W · slope · scale; `away`, (p − onehot) · sum, is used up."""
    half = head.weight.dtype != torch.float32
    if half:
        away.div_(total)  # the product of exponentials would leave float16's range
    if slope is not None:
        away.mul_(slope)
    gradient = torch.mm(away.to(head.weight.dtype), head.weight)
    return (gradient if half else gradient.div_(total)).mul_(-head.scale)


class _TrainedHead(torch.autograd.Function):
    """One chunk of a head that is trained itself: logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, targets: Tensor, squares: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, targets)
        found = _normalize(_logits(hidden, head, weight, bias), targets, squares=squares)
        ctx.mark_non_differentiable(found.squares)
        return found.logps, found.squares

    @staticmethod
    def backward(ctx: Any, above: Tensor, _: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        head: Head = ctx.head
        logits = _logits(hidden, head, weight, bias)
        slope = _slope(logits, head)
        total = _normalize(logits, targets, squares=False).total
        raw = logits.div_(total).neg_()
        raw = (raw if slope is None else raw.mul_(slope)).mul_(above[:, None] * head.scale)
        half = raw.to(weight.dtype)
        summed = None if bias is None else raw.sum(0).to(bias.dtype)
        return half @ weight, half.t() @ hidden, summed, None, None, None
