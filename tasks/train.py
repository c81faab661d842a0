"""train: preferences taught to a LoRA adapter, against the stored reference scores where the loss asks for them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from engine.loss_config import PreferenceConfig
from engine.monitoring import MonitorConfig, watch
from engine.policies import check_start, given_policy, open_adapted, open_tokenizer
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage
from engine.tracking import trackers
from engine.training_config import StartedLoraConfig, TrainingConfig, binds_draws, has_checkpoint, upkeep

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from engine.preferences.pairs import TokenPair
    from engine.training.checkpoint import Checkpoints
    from engine.training.objectives import PreferenceObjective

_HOW = ("dtype", "attention", "quantization")


class Config(PreferenceConfig, TrainingConfig):
    """What decides the adapter. The learning rate is the seed's: at 5e-5 its author saw the model fall silent."""

    model: ModelSource = ModelSource()
    lora: StartedLoraConfig = StartedLoraConfig()
    learning_rate: float = Field(default=1e-6, gt=0, lt=1)
    monitor: MonitorConfig = MonitorConfig()


def run(ctx: Context[Config]) -> None:
    """Writes `adapter/` in PEFT's format; below `logs/` the steps, TensorBoard's events and the sampled answers.

    Where the SFT's adapter goes on being trained, `continued/` is that adapter, on the base.
    """
    from engine.fitting import apply_runtime
    from engine.models.anchored import save_trained
    from engine.models.devices import accelerator_on, pick_device
    from engine.models.fused_lora import fuse_lora
    from engine.models.lora import trainable_parameters
    from engine.models.quantization import check_quantization
    from engine.preferences.pairs import load_pairs
    from engine.training.run import train

    config, how = ctx.config, _how(ctx)
    device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
    check_quantization(how["quantization"], how["dtype"], device)
    accelerator = accelerator_on(device, trackers(ctx))
    model = open_adapted(ctx.inputs, config.model, ctx.sources, config.lora, config.seed, **how)
    fuse_lora(model)
    model = accelerator.prepare_model(model.train())
    apply_runtime(ctx, model, training=True)
    pairs = load_pairs(ctx.inputs["subsample"].file("train.parquet"))
    plan = config.plan(len(pairs))
    keeping = upkeep(ctx, plan, device)
    objective = _objective(ctx, model, pairs, keeping.checkpoints)
    proven = _prove(ctx, model, objective)
    watcher = watch(ctx, config.monitor, config.model, accelerator.unwrap_model(model), device, plan.steps)
    trained = train(
        model,
        objective,
        plan,
        config.optimization(config.lora.plus_ratio),
        accelerator,
        keeping,
        save=lambda: save_trained(accelerator.unwrap_model(model), ctx.work),
        watcher=watcher,
    )
    went = {"steps": trained.steps, "epochs": trained.epochs, "highest_learning_rate": trained.highest_rate}
    ctx.hand_down(**config.spec(), how=how, monitor=watcher.outcome, went=went)
    ctx.record(
        **(watcher.kept_numbers if watcher.ends() else trained.means),
        **watcher.outcome,
        steps=trained.steps,
        beta=config.beta,
        pairs=len(pairs),
        pairs_per_second=trained.rows_per_second,
        **trained.resources,
        **proven,
        trainable_parameters=sum(value.numel() for value in trainable_parameters(model).values()),
        device=str(device),
        dtype=how["dtype"],
        layout=objective.passes.forward.layout,
        head=objective.passes.forward.head,
        micro_batch_tokens=objective.passes.budget,
    )


def _objective(
    ctx: Context[Config], model: "PeftModel", pairs: "list[TokenPair]", checkpoints: "Checkpoints"
) -> "PreferenceObjective":
    from engine.dpo.loss_table import build
    from engine.fitting import training_passes
    from engine.training.objectives import PreferenceObjective

    config = ctx.config
    loss = build(config.spec())
    ref = _ref(ctx, pairs, loss.ld_alpha)
    whole = None if loss.ld_alpha is None else _ref(ctx, pairs)
    return training_passes(
        ctx,
        model,
        [pair.rows for pair in pairs],
        lambda passes: PreferenceObjective(pairs, ref, loss, config.beta, passes, whole),
        open_tokenizer(ctx.inputs["tokenize"], config.model).pad_token_id or 0,
        checkpoints,
    )


def _how(ctx: Context[Config]) -> dict[str, str]:
    """How the policy is run: as the reference was scored; where there is none, as it would have been."""
    settings = ctx.inputs["reference"].handed_down if "reference" in ctx.inputs else ctx.borrowed["reference"]
    return {name: settings[name] for name in _HOW}


def _ref(ctx: Context[Config], pairs: "list[TokenPair]", ld_alpha: float | None = None) -> "Tensor":
    """(pairs, 2) logps under the reference, as LD-DPO weighs them if asked; zeros, which nobody reads, without one."""
    import torch

    from engine.preferences.scores import ref_logps

    if "reference" not in ctx.inputs:
        return torch.zeros((len(pairs), 2), dtype=torch.float64)
    return torch.from_numpy(ref_logps(ctx.inputs["reference"].file("train.parquet"), pairs, ld_alpha))


def _prove(ctx: Context[Config], model: "PeftModel", objective: "PreferenceObjective") -> dict[str, Any]:
    """The step-0 proof on pairs that the training seed draws, and others; see `rows_to_prove` for what it can miss.

    On a resume, too, and before the checkpoint is put back: stored scores are held against the untrained adapter.
    Without a reference nothing was stored that could be wrong.

    Returns:
        What is recorded of it.
    """
    if "reference" not in ctx.inputs:
        why = f"{' + '.join(term.name for term in ctx.config.loss)} needs no reference"
        ctx.log.info("step 0 has no proof, and displacement is not watched for: %s", why)
        return {"step0_proof": f"none: {why}"}
    from engine.training.proof import prove_step_zero, rows_to_prove

    rows = rows_to_prove([pair.length for pair in objective.pairs], ctx.config.seed)
    proof = prove_step_zero(model, objective, rows, dtype=ctx.inputs["reference"].handed_down["dtype"])
    ctx.log.info(
        "step 0: policy is reference; %d stored scores differ by %.2g nats at most, %.2g are allowed",
        proof.pairs,
        proof.max_difference,
        proof.tolerance,
    )
    return {
        "step0_max_margin": proof.max_margin,
        "step0_tolerance": proof.tolerance,
        "step0_loss": proof.loss,
        "ref_recheck_pairs": proof.pairs,
        "ref_recheck_max_difference": proof.max_difference,
        "ref_recheck_tolerance": proof.tolerance,
    }


def _check(config: Config, configs: Mapping[str, Any]) -> None:
    sft, scored = configs["sft"], configs["reference"]
    made = sft.lora if sft.method == "lora" else None
    check_start(config.model, config.lora, sft_lora=made, quantization=scored.quantization)


def _sources(config: Config, sources: Sources) -> dict[str, Any]:
    return {**given_policy(config.model, sources), **config.monitor.sources(sources)}


STAGE = Stage(
    name="train",
    config=Config,
    version=5,
    run=run,
    inputs=("tokenize", "subsample", "sft", "reference"),
    borrows=("reference",),
    check=_check,
    sources=_sources,
    # Which pairs share a pass decides which draws of the dropout they get.
    binds=lambda config, runtime, inputs: binds_draws(runtime) if config.lora.dropout else {},
    resumes=has_checkpoint,
)
