"""Which way the rows go through a model: the fastest that is shown to agree with the plain one on a few real rows.

Layouts agree to rounding (float32: 1e-5 of what they compute). A model whose attention looks back a window only, caps
its scores, or does something nobody thought of, falls back by itself; the log says to what and why.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from engine.errors import ModelError, NumericsError
from engine.models.attention import PACKED, CannotPack
from engine.models.forward import PLAIN, Forward, causal_model, row_logps, takes_fused_head
from engine.models.layouts import LAYOUTS, Group, Layout, size
from engine.models.lora import trainable_parameters
from engine.models.memory import ran_out
from engine.preferences.pairs import TokenRow, shared_length

_log = logging.getLogger("dpo")

# Nats per √(scored tokens) by which two half-precision scorings of a row may differ, and the share of its norm by which
# two gradients may: docs/log.md.
HALF_NATS = 0.1
HALF_GRADIENT = 0.05
_CERTAIN = 0.05  # nats a token, below which the plain way's 1 − p has so few digits left that its gradient is rougher
LEAK_NATS = 0.002  # of the same; nothing at all moves, but where experts are chosen and their batches change
_WEIGHTS = (1.0, 0.5)  # of a group's rows: unequal, lest rows change places; of one sign, lest gradients cancel


@dataclass(frozen=True)
class _Agreement:
    """Largest deviations from the plain way, as shares of what is allowed."""

    logps: float
    gradients: float

    @property
    def holds(self) -> bool:
        return self.logps <= 1 and self.gradients <= 1

    def __str__(self) -> str:
        return f"logps are off by {self.logps:.3g}, gradients by {self.gradients:.3g} times what rounding explains"


def choose_forward(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    pad_id: int,
    wanted: Layout | Literal["auto"] = "auto",
    gradients: bool = True,
) -> Forward:
    """The first of packed, shared, padded and single rows that agrees with the plain forward pass of the same model.

    The plain one takes a row at a time. Besides agreeing, no row's logps may change with its neighbours' tokens: in
    half precision a small leak would pass for rounding.

    Args:
        groups: real rows; a few of them are tried.
        wanted: one layout, or "auto".
        gradients: compare those of the trained parameters as well.

    Raises:
        ModelError: `wanted` names a layout that this model cannot take.
        NumericsError: the model's own logps are not finite on these rows.
    """
    few = _few(groups)
    head: Literal["fused", "module"] = "fused" if takes_fused_head(causal_model(model)) else "module"
    if head == "module":
        _log.info("the head is not a plain linear layer: its logits are computed by the model's own module")
    with _undisturbed(model):
        plain = _results(model, few, PLAIN, pad_id, gradients)
        if not plain[0].isfinite().all():
            raise NumericsError("the model's log-probabilities are not finite", where="the first pairs that were tried")
        for way in _ways(wanted, head):
            reason = _objection(model, few, way, pad_id, plain)
            if reason is None:
                _log.info("%s: agrees with the plain way on %d groups of rows", way, len(few))
                return way
            _log.warning("%s: not taken, %s", way, reason)
    if wanted not in ("auto", "padded", "single"):
        raise ModelError(f"this model cannot take {wanted} rows", found=reason or "", fix='set runtime.layout = "auto"')
    _log.warning("%s: the plain way, slow and right for every causal model", PLAIN)
    return PLAIN


def _ways(wanted: Layout | Literal["auto"], head: Literal["fused", "module"]) -> list[Forward]:
    """What to try, the fastest first; the plain way needs no trial."""
    tried = [Forward(layout, head) for layout in LAYOUTS if wanted in ("auto", layout)]
    return [*tried, Forward("padded", "model")] if wanted in ("auto", "padded") else tried


def _few(groups: Sequence[Group]) -> list[Group]:
    """The groups with the longest row, the most tokens, and the shortest rows, and the first: they share a batch."""
    everywhere = range(len(groups))
    chosen = (
        max(everywhere, key=lambda at: max(map(len, groups[at]))),
        max(everywhere, key=lambda at: size(groups[at], "packed")),
        min(everywhere, key=lambda at: max(map(len, groups[at]))),
        0,
    )
    return [groups[at] for at in dict.fromkeys(chosen)]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Without dropout, and with gradients and random streams as they were."""
    modes = {module: module.training for module in model.modules()}
    held = {parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None}
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in model.parameters():
            parameter.grad = held.get(parameter)


def _objection(
    model: nn.Module, groups: Sequence[Group], way: Forward, pad_id: int, plain: Sequence[Tensor]
) -> str | None:
    """Why this model is not to be sent this way; None when nothing speaks against it."""
    config = causal_model(model).config
    before = config._attn_implementation
    if way.layout == "packed" and before not in ("sdpa", PACKED):
        return f"packing is a matter of sdpa, and the model runs {before}"
    try:
        tried = _results(model, groups, way, pad_id, len(plain) > 1)
        agreement = _compare(model, groups, plain, tried)
        reason = _leak(model, groups, way, pad_id, tried[0]) if agreement.holds else str(agreement)
    except CannotPack as unfit:
        reason = str(unfit)
    except Exception as error:  # remote code may fail in any way, and the plain way is still there
        if ran_out(error):
            raise
        reason = f"it fails with {type(error).__name__}: {error}"
    if reason and config._attn_implementation != before:
        causal_model(model).set_attn_implementation(before)
    return reason


@torch.no_grad()
def _leak(model: nn.Module, groups: Sequence[Group], way: Forward, pad_id: int, before: Tensor) -> str | None:
    """What happens to every second row when the others get other tokens, as many as before; None when nothing does."""
    rows = [(group, at) for group in groups for at in range(len(group))]
    others = iter(_other_tokens(group, at) if number % 2 == 0 else group[at] for number, (group, at) in enumerate(rows))
    after = row_logps(model, [[next(others) for _ in group] for group in groups], way, pad_id).sums()
    scored = before.new_tensor([group[at].scored_tokens for group, at in rows])
    allowed = _allowed(before, scored, LEAK_NATS, exact=_exact(model))
    moved = (after - before).abs()[1::2]
    if bool((moved <= allowed[1::2]).all()):
        return None
    return f"a row's logps move by {float(moved.max()):.2g} nats when the tokens of its neighbours change"


def _other_tokens(group: Group, at: int) -> TokenRow:
    """A row of the group with other tokens after what the rows share, which stays as long as it is."""
    shared, row = shared_length(group), group[at]
    ids = row.input_ids.copy()
    ids[shared:] = ids[shared:][::-1]
    taken = [int(other.input_ids[shared]) for other in group if other is not row and len(other) > shared]
    if len(ids) > shared and int(ids[shared]) in taken:
        ids[shared] = row.input_ids[shared]
    return TokenRow(ids, row.label_mask)


def _results(
    model: nn.Module, groups: Sequence[Group], way: Forward, pad_id: int, gradients: bool
) -> tuple[Tensor, ...]:
    """Summed logps of the rows, and the gradient of their weighted sum as one vector; both in float64.

    Single rows are also differentiated one by one, so that the logits of more than one are not there at once.
    """
    weights = [_WEIGHTS[at % len(_WEIGHTS)] for group in groups for at in range(len(group))]
    if way.layout != "single":
        return _weighted(model, groups, way, pad_id, weights if gradients else [])
    rows = [row for group in groups for row in group]
    sums, gradient = [], torch.zeros(())
    for row, weight in zip(rows, weights, strict=True):
        alone, *slope = _weighted(model, [(row,)], way, pad_id, [weight] if gradients else [])
        sums.append(alone)
        gradient = slope[0].add_(gradient.to(slope[0])) if slope else gradient
    return (torch.cat(sums), gradient) if gradients else (torch.cat(sums),)


def _weighted(
    model: nn.Module, groups: Sequence[Group], way: Forward, pad_id: int, weights: Sequence[float]
) -> tuple[Tensor, ...]:
    """`_results` at once; without the gradient where there are no weights."""
    with torch.set_grad_enabled(bool(weights)):
        sums = row_logps(model, groups, way, pad_id).sums()
    if not weights:
        return (sums.detach(),)
    parameters = list(trainable_parameters(model).values())
    found = torch.autograd.grad(sums @ sums.new_tensor(weights), parameters, allow_unused=True)
    return sums.detach(), torch.cat([grad.double().flatten() for grad in found if grad is not None])


def _exact(model: nn.Module) -> bool:
    return next(model.parameters()).dtype == torch.float32


def _allowed(sums: Tensor, scored: Tensor, nats: float, *, exact: bool) -> Tensor:
    """Nats by which rows' sums may differ: rounding of float32, or `nats` · √tokens in half precision."""
    return 1e-4 + 1e-5 * sums.abs() if exact else nats * scored.sqrt()


def _compare(model: nn.Module, groups: Sequence[Group], plain: Sequence[Tensor], tried: Sequence[Tensor]) -> _Agreement:
    exact = _exact(model)
    scored = plain[0].new_tensor([row.scored_tokens for group in groups for row in group])
    logps = float(((tried[0] - plain[0]).abs() / _allowed(plain[0], scored, HALF_NATS, exact=exact)).max())
    if len(plain) == 1:
        return _Agreement(logps, 0.0)
    if tried[1].shape != plain[1].shape:
        return _Agreement(logps, math.inf)
    norm, apart = float(plain[1].norm()), float((tried[1] - plain[1]).norm())
    nats = -float(plain[0].sum() / scored.sum())  # a token; about 1 − p where that is small
    bound = (1e-5 * max(1.0, _CERTAIN / max(nats, 1e-9)) if exact else HALF_GRADIENT) * norm
    return _Agreement(logps, 0.0 if not apart else apart / bound if bound else math.inf)
