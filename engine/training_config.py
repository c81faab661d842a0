"""The part of a stage's config that says how weights are trained; sft and train share it."""

import math
import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.config import Runtime, Seed, Strict
from engine.models.adapter_config import NAMES, doubled, starts_apart
from engine.stage import Context

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from engine.models.lora import Lora
    from engine.preferences.batching import BatchPlan
    from engine.training.loop import Optimization
    from engine.training.run import Upkeep


Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]
_INITS = '"default", "gaussian", "orthogonal", "pissa", "pissa_niter_<n>" or "olora"'
_OTHER_INITS = {
    "eva": "it is drawn from activations on data; pissa is by the weights alone",
    "corda": "it is drawn from activations on data; pissa is by the weights alone",
    "lora_ga": "it is drawn from gradients on data; pissa is by the weights alone",
    "loftq": 'it quantises by itself; reference.quantization = "4bit" with init = "default" is QLoRA',
}


class LoraConfig(Strict):
    """An adapter of the LoRA family."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = Field(default="all-linear", description="all linear layers but the head, or names")
    rslora: bool = Field(default=False, description="scale by alpha/√rank instead of alpha/rank")
    dora: bool = Field(default=False, description="train each weight's length apart from its direction; slower")
    init: str = Field(default="default", description=f"what it starts as: {_INITS}")
    plus_ratio: float = Field(default=0.0, description="LoRA+: B's learning rate as a multiple of A's; 0 is off")
    rank_pattern: dict[str, Rank] = Field(default_factory=dict, description="other ranks, by the end of modules' names")
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict, description="other alphas, likewise")

    @field_validator("init")
    @classmethod
    def _starts_somehow(cls, init: str) -> str:
        if init in _OTHER_INITS:
            raise ValueError(f"{_INITS}; not {init}: {_OTHER_INITS[init]}")
        if not re.fullmatch(r"default|gaussian|orthogonal|pissa|pissa_niter_\d+|olora", init):
            raise ValueError(_INITS)
        return init

    @field_validator("plus_ratio")
    @classmethod
    def _is_off_or_faster(cls, ratio: float) -> float:
        if ratio and not 1 <= ratio < math.inf:
            raise ValueError("0, which is off, or at least 1: B moves faster than A")
        return ratio

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_names(cls, pattern: dict[str, Any]) -> dict[str, Any]:
        for name in pattern:
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"names of modules, or regular expressions; {name}: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.dora and self.init not in ("default", "gaussian"):
            raise ValueError(f'init = "default" or "gaussian" beside dora = true, which "{self.init}" is not made for')
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.rank_pattern.values())):
            raise ValueError('an even rank for init = "orthogonal", which shares it out between A and B')
        return self

    def sealed(self) -> dict[str, Any]:
        """What adapter_config.json will say of such an adapter, as far as it can be told without the model."""
        shape = {theirs: getattr(self, ours) for ours, theirs in NAMES.items()}
        return (doubled(shape) if starts_apart(self.init) else shape) | {"use_dora": self.dora}

    def lora(self) -> "Lora":
        """The same as the engine takes it."""
        from engine.models.lora import Lora

        taken = self.model_dump(include={each.name for each in fields(Lora)})
        return Lora(**taken)


class StartedLoraConfig(LoraConfig):
    """The adapter that preferences are trained into, and whether it is a new one."""

    start: Literal["fresh", "sft"] = Field(
        default="fresh", description="fresh: a new adapter on the starting policy; sft: the SFT's own goes on"
    )

    @model_validator(mode="after")
    def _is_as_it_was_made(self) -> Self:
        if self.start == "sft" and (self.init != "default" or self.dora):
            raise ValueError('neither init nor dora beside start = "sft": the adapter that goes on has its weights')
        return self

    @model_validator(mode="after")
    def _begins_as_the_policy(self) -> Self:
        beside = 'start = "sft"' if self.start == "sft" else f'init = "{self.init}"'
        # An orthogonal B A is 0 whatever goes in.
        if self.dropout and (self.start == "sft" or self.init not in ("default", "gaussian", "orthogonal")):
            raise ValueError(
                f"dropout = 0 beside {beside}: what the adapter starts as is subtracted whole, and dropout would leave "
                "out a part of it, so that training would not begin at the reference"
            )
        return self

    def stated(self) -> dict[str, Any]:
        """What differs from the defaults in the adapter's shape, by field.

        A default says nothing, also where it is written out: a profile with every key means what a short one does.
        """
        plain = type(self)()
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) != getattr(plain, name)}


class TrainingConfig(Strict):
    """AdamW (0.9, 0.95) under a schedule with warm-up and clipping, over seeded epochs."""

    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=32, ge=1, description="rows an optimizer step")
    seed: Seed = 0

    def plan(self, rows: int) -> "BatchPlan":
        """The optimizer steps over that many rows."""
        from engine.preferences.batching import BatchPlan

        return BatchPlan(rows, self.batch_size, self.epochs, self.seed)

    def optimization(self, plus_ratio: float = 0.0) -> "Optimization":
        """How the weights move; `plus_ratio` is the adapter's, where one is trained."""
        from engine.training.loop import Optimization

        return Optimization(
            self.learning_rate,
            self.schedule,
            self.warmup_share,
            max_grad_norm=self.max_grad_norm,
            plus_ratio=plus_ratio,
        )


def binds_draws(runtime: Runtime) -> dict[str, Any]:
    """What decides which draws of a dropout a row gets, and so the result of training with one.

    A budget that had to be lowered for want of memory changes them, too, and no key can know of that: the log says so.
    """
    return {name: getattr(runtime, name) for name in ("micro_batch_tokens", "layout", "memory_limit_gib", "compile")}


def has_checkpoint(work: "Path") -> bool:
    """Whether a training run that was interrupted left a checkpoint in its stage's work folder."""
    return any((work / ".checkpoints").glob("step-*"))


def upkeep(ctx: Context[Any], plan: "BatchPlan", device: "torch.device") -> "Upkeep":
    """What a training run inside a stage keeps and tells, by the runtime's settings.

    A checkpoint is of the artifact that is being made, of these very inputs, and of the plan; only what says how fast
    may differ when a run goes on from it.
    """
    from engine.models.devices import what_bits_depend_on
    from engine.training.run import Upkeep

    also = {name: getattr(ctx.runtime, name) for name in ("compile", "gradient_checkpointing")}
    return Upkeep(
        name=ctx.stage,
        work=ctx.work,
        log=ctx.log,
        progress=lambda done, total, numbers: ctx.progress(done, total, **numbers),
        checkpoint_seconds=ctx.runtime.checkpoint_every_seconds,
        checkpoints_kept=ctx.runtime.checkpoints_kept,
        log_every_steps=ctx.runtime.log_every_steps,
        checkpoint_every_steps=ctx.runtime.checkpoint_every_steps,
        identity={
            "artifact": ctx.work.name,  # the stage and its key
            "inputs": {name: artifact.digest for name, artifact in sorted(ctx.inputs.items())},
            "plan": asdict(plan),
        },
        environment={**what_bits_depend_on(device), **also},
    )
