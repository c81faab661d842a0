"""A fresh adapter of the LoRA family on a frozen policy, through peft."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models.adapter_config import check_init, starts_apart
from engine.models.anchored import AnchoredModel, lora_layers


@dataclass(frozen=True)
class Lora:
    """The adapter's shape (Hu et al. 2021). No bias is trained: switching the adapter off must give the policy back.

    Attributes:
        targets: "all-linear" (every linear layer but the head), a regular expression over names of modules, or a list
            of names.
        rslora: scale by α/√rank instead of α/rank (Kalajdzievski 2023).
        dora: train each weight's length apart from its direction (Liu et al. 2024).
        init: what A and B start as. "default" and "gaussian" leave B at 0; "orthogonal" has B A = 0, but for rounding;
            "pissa", "pissa_niter_<n>" and "olora" find a start in the policy's weights. Those subtract their start
            (`AnchoredModel`).
        rank_pattern, alpha_pattern: other ranks and α where the end of a module's name, or a regular expression for
            it, fits.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    rslora: bool = False
    dora: bool = False
    init: str = "default"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @property
    def starts_apart(self) -> bool:
        """Whether what it starts as is not nothing by itself, so that it has to be subtracted."""
        return starts_apart(self.init)

    def peft_config(self) -> LoraConfig:
        """The same in peft's words."""
        # Of scales by name it warns that it could not convert them; what is sealed here is not converted by peft.
        warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA with rank_pattern", UserWarning)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" else self.init,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            bias="none",
            task_type="CAUSAL_LM",
        )


def add_lora(model: PreTrainedModel, lora: Lora, *, seed: int, base_name: str) -> PeftModel:
    """Freezes the model and puts a seeded adapter on it that starts as no change at all; float32 whatever the base is.

    The model's own dropout is switched off: the reference was scored without it, and the policy is held against that.
    Its weights are as they were, also where peft's initialisation would have changed them.

    Args:
        base_name: what `adapter_config.json` names as the model to load first.

    Raises:
        ConfigError: the weights are quantised, and `lora.init` is by them.
        ModelError: `lora.targets` or a pattern name no module, or one that the model has not, or one whose weight is
            another's, too; or `lora.init` or `lora.dora` cannot be had of one of them.
    """
    check_init(lora.init, getattr(model, "quantization_method", None) or "none")
    _check_targets(model, lora.targets)
    switch_off_dropout(model)
    torch.manual_seed(seed)
    try:
        adapted = _anchored(model, lora) if lora.starts_apart else get_peft_model(model, lora.peft_config())
    except (ValueError, re.error) as error:
        raise _wrong_targets(model, lora.targets, str(error)) from None
    own = adapted.peft_config["default"]
    own.base_model_name_or_path = base_name
    own.init_lora_weights = True  # whoever loads it has the weights: nothing is to be drawn or looked for
    # peft keeps a set, and a set is written in another order by every process: the same adapter would be another file.
    own.target_modules = sorted(own.target_modules) if isinstance(own.target_modules, set) else own.target_modules
    _check_patterns(adapted, lora)
    check_untied(adapted, base_name)
    if isinstance(adapted, AnchoredModel):
        adapted.anchor()
    if lora.dora:
        _check_lengths(adapted)
        _renew_lengths(adapted)
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


def _check_patterns(model: PeftModel, lora: Lora) -> None:
    """peft passes over a pattern that fits nothing."""
    adapted: list[str] = getattr(model.base_model, "targeted_module_names")  # noqa: B009 - torch types it a module
    for field_name in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, float] = getattr(lora, field_name)
        fitting = {get_pattern_key(patterns.keys(), name) for name in adapted}
        for pattern in patterns:
            if pattern not in fitting:
                raise ModelError(
                    f"no adapted module fits a name in lora.{field_name}",
                    expected=f"the end of a name such as {adapted[0]}",
                    found=f"{pattern} (it fits none, or an earlier name fits them, too)",
                )


def check_untied(model: PeftModel, where: str) -> None:
    """Refuses an adapter on a weight that other modules use, as a head does that is the embedding.

    The adapter is at one use of it; merged, it would be at all of them, and that is another model.

    Raises:
        ModelError: naming the module, and `where`.
    """
    uses = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and uses[id(getattr(layer.get_base_layer(), "weight", None))] > 1:
            last = name.rpartition(".")[2]
            raise ModelError(
                "an adapter cannot be merged into a weight that has two uses",
                expected="targets whose weights are theirs alone",
                found=f"{last}, whose weight is tied to another module's",
                where=where,
                fix=f"leave {last} out of the adapter's targets; or save the base with tie_word_embeddings = false, "
                "with an embedding and a head of its own, and train on that",
            )


def _check_lengths(model: PeftModel) -> None:
    """Only matrices that a layer multiplies by have the lengths that are trained apart."""
    odd = next((layer for layer in lora_layers(model) if "default" not in layer.lora_A), None)
    if odd is not None:
        raise ModelError(
            "lora.dora cannot be had of every target",
            expected="linear layers",
            found=f"a layer of {type(odd.get_base_layer()).__name__}",
            fix="leave that target out of lora.targets, or set lora.dora = false",
        )


def _anchored(model: PreTrainedModel, lora: Lora) -> AnchoredModel:
    """With A and B as peft finds them in the weights, and the weights as they were before it took them out."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # Of float32 weights peft changes the tensor itself, of others a copy.
    is_changed = {name: module.weight.dtype == torch.float32 for name, module in linear.items()}
    before = {name: each.weight.data.clone() if is_changed[name] else each.weight.data for name, each in linear.items()}
    adapted = AnchoredModel(model, lora.peft_config())
    for name, module in linear.items():
        module.weight.data = before[name]
    _check_start(adapted, lora)
    return adapted


def _renew_lengths(model: PeftModel) -> None:
    """Measures the weights' lengths anew in float32, as they are measured in every step.

    peft measured them while the adapter had the base's dtype: in half precision it would not start as no change.
    """
    for layer in lora_layers(model):
        layer.lora_magnitude_vector["default"].update_layer(
            base_layer=layer.get_base_layer(),
            lora_A=layer.lora_A["default"].weight,
            lora_B=layer.lora_B["default"].weight,
            scaling=layer.scaling["default"],
        )


def _check_start(model: AnchoredModel, lora: Lora) -> None:
    """An initialisation by the weights is one of matrices, and has no more directions than they."""
    for layer in lora_layers(model):
        base, rank = layer.get_base_layer(), layer.r["default"]
        if type(base) is not torch.nn.Linear or rank > min(base.weight.shape):
            raise ModelError(
                f'lora.init = "{lora.init}" cannot be had of every target',
                expected=f"linear layers with {rank} rows and columns at least",
                found=f"{type(base).__name__} {tuple(base.weight.shape)}",
                fix='lower lora.rank, leave that target out, or set lora.init = "default"',
            )


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Sets every share of dropout that a model has to 0, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # attention passes its share on as a number
                setattr(module, name, 0.0)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name → parameter of everything that training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
