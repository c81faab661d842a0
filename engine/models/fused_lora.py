"""A LoRA layer as one autograd step: fewer passes over the activations than peft's own forward, the same numbers.

y = x Wᵀ + s (x Aᵀ) Bᵀ (Hu et al. 2021, eq. 3). What is kept for the backward pass is x and x Aᵀ, and no gradient is
computed for W. A and B stay float32 where W is half precision, and are multiplied in W's dtype, as under autocast. An
anchored adapter is the one of twice the rank that its difference to the start is.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from engine.models.anchored import PAIR, difference_a, difference_b


def fuse_lora(model: nn.Module) -> int:
    """Gives every plain LoRA layer the fused forward, and returns how many there are.

    Left to peft are layers with dropout, biases that train, DoRA or quantised weights; and of a fused layer whatever is
    not the plain case: adapters that are switched off, merged, chosen by name, or several.
    """
    fused = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for module in fused:
        module.forward = MethodType(_forward, module)
    return len(fused)


def _is_plain(module: Any) -> bool:
    base = module.base_layer
    return type(base) is nn.Linear and not base.weight.requires_grad and bool(_plain_adapters(module))


def _plain_adapters(module: Any) -> list[str]:
    """The adapter in force, or the pair of an anchored one, where each is s x Aᵀ Bᵀ and nothing else; else none."""
    names: list[str] = module.active_adapters
    plain = all(
        name in module.lora_A
        and isinstance(module.lora_dropout[name], nn.Identity)
        and name not in module.lora_variant
        and not module.lora_bias[name]
        for name in names
    )
    return names if plain and (len(names) == 1 or tuple(names) == PAIR) else []


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor
    names = _plain_adapters(self)
    if not names or self.disable_adapters or self.merged or args or kwargs:
        out = type(self).forward(self, x, *args, **kwargs)
        return out
    base = self.base_layer
    a, b = self.lora_A[names[0]].weight, self.lora_B[names[0]].weight
    if len(names) > 1:
        a = difference_a(a, self.lora_A[names[1]].weight)
        b = difference_b(b, self.lora_B[names[1]].weight)
    out = _FusedLora.apply(x, base.weight, base.bias, a, b, self.scaling[names[0]])  # type: ignore[no-untyped-call]
    return out


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        down, up = a.to(weight.dtype), b.to(weight.dtype)
        inner = torch.mm(rows, down.t())
        out.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Any:
        rows, inner, weight, a, b = ctx.saved_tensors
        above = above.reshape(-1, above.shape[-1])
        down, up = a.to(weight.dtype), b.to(weight.dtype)
        to_inner = torch.mm(above, up).mul_(ctx.scale)
        to_b = torch.mm(above.t(), inner).to(b.dtype).mul_(ctx.scale)
        to_a = torch.mm(to_inner.t(), rows).to(a.dtype)
        to_x = torch.mm(above, weight).addmm_(to_inner, down) if ctx.needs_input_grad[0] else None
        return None if to_x is None else to_x.view(ctx.shape), None, None, to_a, to_b, None
