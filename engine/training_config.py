"""The part of a stage's config that says how weights are trained; sft and train share it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from engine.config import Runtime, Seed, Strict
from engine.stage import Context

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from engine.models.lora import Lora
    from engine.preferences.batching import BatchPlan
    from engine.training.loop import Optimization
    from engine.training.run import Upkeep


class LoraConfig(Strict):
    """A LoRA adapter."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = Field(default="all-linear", description="all linear layers but the head, or names")

    def lora(self) -> "Lora":
        """The same as the engine takes it."""
        from engine.models.lora import Lora

        return Lora(self.rank, self.alpha, self.dropout, self.targets)


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

    def optimization(self) -> "Optimization":
        """How the weights move."""
        from engine.training.loop import Optimization

        return Optimization(self.learning_rate, self.schedule, self.warmup_share, max_grad_norm=self.max_grad_norm)


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
