"""What may be done to a model's decoder layers to trade time for memory: computed again backwards, or compiled.

Both change how a layer is run and not what it computes beyond rounding; neither touches parameters or their names.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton_package
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, Cache

from engine.errors import ConfigError, ModelError
from engine.models.attention import PACKED, packed_attention
from engine.models.forward import causal_model


class _Run:
    """A layer's forward, as it is run.

    Attributes:
        plain: the layer's own forward.
        fast: the compiled one, where there is one.
        again: whether the backward pass computes the layer again instead of keeping what is inside.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain, self.fast, self.again = plain, plain, False

    def __call__(self, *given: Any, **named: Any) -> Any:
        if any(isinstance(each, Cache) for each in (*given, *named.values())):
            return self.plain(*given, **named)  # generation: a cache grows token by token, and may not grow twice
        if self.again and torch.is_grad_enabled():
            return checkpoint(self.fast, *given, use_reentrant=False, **named)
        return self.fast(*given, **named)


def switch_on_checkpointing(model: nn.Module) -> int:
    """Lets every decoder layer be computed again in the backward pass; only its input is kept. Returns how many.

    It holds wherever gradients are recorded, in eval mode too, so that what is tried before the first step is what
    trains. Layers need not see an input with a gradient: the base may be frozen up to its embedding. What a layer is
    called with, masks and spans included, reaches the second computation as it was, and so do the draws of dropout.

    Raises:
        ModelError: the model's layers are not found.
    """
    runs = list(_runs(model))
    for run in runs:
        run.again = True
    return len(runs)


def compile_body(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compiles every decoder layer, for any number of tokens, once the model is on its device. Returns how many.

    The attention of packed rows is left out. On the CPU it is a loop over the branches of a row, which would be
    compiled anew for every row's lengths; on CUDA it is compiled by itself. So what is compiled is everything around
    it: norms, projections with their adapters, rotations, the gated products. The head works in chunks of its own and
    is left as it is. All layers share what is compiled for the first, whose first passes take a while.

    Args:
        backend: torch.compile's.

    Raises:
        ConfigError: torch cannot compile for this device.
        ModelError: the model's layers are not found.
    """
    if backend == "inductor":
        check_compiler(next(model.parameters()).device)
    uncompiled: Any = torch.compiler.disable  # it imports the compiler: not where the attention is defined
    AttentionInterface.register(PACKED, uncompiled(packed_attention))
    runs = list(_runs(model))
    for run in runs:
        run.fast = torch.compile(run.plain, dynamic=True, backend=backend)
    return len(runs)


def check_compiler(device: torch.device) -> None:
    """Compiles one small function for the device, so that what is missing shows itself before the work begins.

    Raises:
        ConfigError: it cannot be compiled; says what is missing, where that can be told.
    """
    torch._dynamo.reset()  # nothing compiled before, here or in another process, tells what can be compiled now
    try:
        sample = torch.ones(16, device=device, requires_grad=True)
        compiled = torch.compile(_small, dynamic=True, options={"fx_graph_cache": False})
        torch.autograd.backward(compiled(sample))
    except Exception as error:  # the compiler's parts raise many kinds, most of them private
        raise ConfigError(
            f"torch.compile cannot compile for {device.type} here",
            found=f"{type(error).__name__}: {_gist(error)}",
            fix=f"{_missing(device)}, or set runtime.compile = false",
        ) from None


def _small(values: torch.Tensor) -> torch.Tensor:
    return (values.sigmoid() * values).sum()


def _gist(error: BaseException) -> str:
    """The first line that says something: above the backend's own message is one that it had something to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith("raised:")), "no message")[:300]


def _missing(device: torch.device) -> str:
    if device.type == "cuda" and not has_triton_package():
        return "install Triton (pip install triton)"
    return "install a C++ compiler and Python's headers (on Debian: apt install g++ python3-dev)"


def _runs(model: nn.Module) -> Iterator[_Run]:
    """The decoder layers' runs, put in place where there are none yet."""
    for layer in decoder_layers(model):
        if not isinstance(layer.forward, _Run):
            layer.forward = _Run(layer.forward)
        yield layer.forward


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a causal language model's body, adapters in place.

    Raises:
        ModelError: there is no list of as many modules as the configuration has layers.
    """
    causal = causal_model(model)
    count = getattr(causal.config.get_text_config(), "num_hidden_layers", None)
    for module in causal.base_model.modules():  # the outermost list first: experts are as many by chance only
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        "the model's decoder layers are not found",
        expected=f"a list of {count} modules",
        where=type(causal).__name__,
        fix="set runtime.gradient_checkpointing = false and runtime.compile = false",
    )
