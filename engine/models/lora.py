"""A fresh LoRA adapter on a frozen policy, through peft."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from engine.errors import ModelError


@dataclass(frozen=True)
class Lora:
    """The adapter's shape (Hu et al. 2021). No bias is trained: switching the adapter off must give the policy back.

    Attributes:
        targets: "all-linear" (every linear layer but the head), a regular expression over names of modules, or a list
            of names.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]


def add_lora(model: PreTrainedModel, lora: Lora, *, seed: int, base_name: str) -> PeftModel:
    """Freezes the model and puts a seeded adapter on it that starts as no change at all; float32 whatever the base is.

    The model's own dropout is switched off: the reference was scored without it, and the policy is held against that.

    Args:
        base_name: what `adapter_config.json` names as the model to load first.

    Raises:
        ModelError: `lora.targets` name no module, or one that the model has not.
    """
    _check_targets(model, lora.targets)
    _switch_off_dropout(model)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, re.error) as error:
        raise _wrong_targets(model, lora.targets, str(error)) from None
    own = adapted.peft_config["default"]
    own.base_model_name_or_path = base_name
    # peft keeps a set, and a set is written in another order by every process: the same adapter would be another file.
    own.target_modules = sorted(own.target_modules) if isinstance(own.target_modules, set) else own.target_modules
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> None:
    """peft itself is content when one name of a list is there."""
    if isinstance(targets, str):
        return
    names = [name for name, _ in model.named_modules()]
    unknown = [each for each in targets if not any(f".{name}".endswith(f".{each}") for name in names)]
    if unknown or not targets:
        raise _wrong_targets(model, targets, f"no module named {', '.join(unknown)}" if unknown else "no name")


def _wrong_targets(model: PreTrainedModel, targets: str | Sequence[str], why: str) -> ModelError:
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    names = sorted({name.rpartition(".")[2] for name in linear})
    return ModelError(
        "the adapter's targets do not name modules of this model",
        expected=f'"all-linear", or some of {", ".join(names)}',
        found=f"{targets} ({why})",
    )


def _switch_off_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # attention passes its share on as a number
                setattr(module, name, 0.0)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name → parameter of everything that training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
