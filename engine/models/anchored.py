"""An adapter that does not start at zero, on a policy that does not change for it.

Trained are B and A, from B₀ and A₀ on: an SFT adapter that goes on, or what an initialisation found in the weights. The
policy they start from is W, whole, so the layer is W + s (B A − B₀ A₀), with the start frozen beside what moves. Its
gradients are those of s B A on W − s B₀ A₀, the residual that peft would freeze instead (PiSSA: Meng et al. 2024;
OLoRA: Büyükakyüz 2024) or the base under an SFT adapter; but no weight is taken apart, so none is rounded anew.

The difference is a plain LoRA of twice the rank, s [B − B₀, B₀] [A; A − A₀], and is sealed as that. It is nothing
before the first step; and small steps away from a large start are there in half precision, too, since they are
subtracted before they are rounded.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from engine.models.adapter_config import NAMES, WEIGHTS, doubled

_TRAINED, _START = PAIR = ("default", "start")  # peft's names of the adapter that moves, and of minus its start


class AnchoredModel(PeftModelForCausalLM):  # type: ignore[misc]  # peft is not typed
    """A policy under such an adapter.

    Attributes:
        below: the name of the SFT adapter's base, where one goes on being trained; else empty.
    """

    below: str = ""

    def anchor(self) -> None:
        """Subtracts what the adapter is now, for good; called once, before anything is trained."""
        config = copy.deepcopy(self.own_config)
        config.lora_dropout, config.init_lora_weights = 0.0, True
        self.add_adapter(_START, config)
        with torch.no_grad():
            for layer in lora_layers(self):
                layer.lora_A[_START].weight.copy_(layer.lora_A[_TRAINED].weight)
                layer.lora_B[_START].weight.copy_(-layer.lora_B[_TRAINED].weight)
        self.base_model.set_adapter(list(PAIR))
        self._freeze_start()

    @property
    def own_config(self) -> LoraConfig:
        """peft's description of the adapter that is trained."""
        config = self.peft_config[_TRAINED]
        assert isinstance(config, LoraConfig)
        return config

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The starting policy for a while."""
        try:
            with super().disable_adapter():
                yield
        finally:
            self._freeze_start()  # peft lets train again whatever it switches on again

    def _freeze_start(self) -> None:
        for layer in lora_layers(self):
            layer.lora_A[_START].requires_grad_(False)
            layer.lora_B[_START].requires_grad_(False)

    def trained(self) -> dict[str, Tensor]:
        """B and A as they are now, by peft's names: an adapter on W − s B₀ A₀."""
        return dict(get_peft_model_state_dict(self, adapter_name=_TRAINED, save_embedding_layers=False))

    def since_start(self) -> dict[str, Tensor]:
        """[B − B₀, B₀] and [A; A − A₀], by peft's names: an adapter on W."""
        now = self.trained()
        start = get_peft_model_state_dict(self, adapter_name=_START, save_embedding_layers=False)
        return {
            name: difference_a(now[name], start[name]) if ".lora_A." in name else difference_b(now[name], start[name])
            for name in now
        }


def difference_a(a: Tensor, start: Tensor) -> Tensor:
    """[A; A − A₀], (2r, in), of what moves and what it started as, (r, in)."""
    return torch.cat([a, a - start])


def difference_b(b: Tensor, minus_start: Tensor) -> Tensor:
    """[B − B₀, B₀], (out, 2r), of what moves and minus what it started as, (out, r)."""
    return torch.cat([b + minus_start, -minus_start], dim=1)


def lora_layers(model: torch.nn.Module) -> Iterator[LoraLayer]:
    """The layers that an adapter sits on."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def save_trained(model: PeftModel, work: Path) -> None:
    """Writes `adapter/` in peft's format: a plain LoRA or DoRA on the policy that training started from.

    Where an SFT adapter went on being trained there is `continued/` besides: that adapter, on its own base.
    """
    folder = work / "adapter"
    if not isinstance(model, AnchoredModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's blank card, with a path of this machine in it
        return
    _write(model.since_start(), _doubled(model.own_config), folder)
    if model.below:
        config = copy.deepcopy(model.own_config)
        config.base_model_name_or_path = model.below
        _write(model.trained(), config, work / "continued")


def _doubled(config: LoraConfig) -> LoraConfig:
    """The same scale at twice the rank."""
    twice = copy.deepcopy(config)
    for name, value in doubled({name: getattr(config, name) for name in NAMES.values()}).items():
        setattr(twice, name, value)
    return twice


def _write(weights: dict[str, Tensor], config: LoraConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    written = copy.deepcopy(config)
    written.inference_mode = True
    written.save_pretrained(str(folder))
