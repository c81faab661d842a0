"""train: DPO with LoRA on the subsample, against the stored reference scores."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.config import Strict
from engine.monitoring import MonitorConfig, watch
from engine.policies import given_policy, open_policy, open_tokenizer, policy_name
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage
from engine.tracking import trackers
from engine.training_config import LoraConfig, TrainingConfig, binds_draws, has_checkpoint, upkeep

if TYPE_CHECKING:
    from peft import PeftModel

    from engine.preferences.pairs import TokenPair
    from engine.training.checkpoint import Checkpoints
    from engine.training.objectives import PreferenceObjective
    from engine.training.proof import StepZero


class LossTerm(Strict):
    """One term of the loss and its weight."""

    name: Literal["sigmoid", "sft"]
    weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="sigmoid: conservative DPO")

    @model_validator(mode="after")
    def _smoothing_has_a_meaning(self) -> Self:
        if self.name == "sft" and self.label_smoothing:
            raise ValueError("label_smoothing on a preference term such as sigmoid; sft has none")
        return self


class Config(TrainingConfig):
    """What decides the adapter. The learning rate is the seed's: at 5e-5 its author saw the model fall silent."""

    model: ModelSource = ModelSource()
    beta: float = Field(default=0.1, gt=0, description="how dearly leaving the reference is paid for")
    loss: list[LossTerm] = Field(default=[LossTerm(name="sigmoid")], min_length=1)
    lora: LoraConfig = LoraConfig()
    learning_rate: float = Field(default=1e-6, gt=0, lt=1)
    monitor: MonitorConfig = MonitorConfig()

    @field_validator("loss")
    @classmethod
    def _has_a_preference(cls, terms: list[LossTerm]) -> list[LossTerm]:
        if not any(term.name != "sft" and term.weight > 0 for term in terms):
            raise ValueError("at least one preference term with a weight above 0, for example sigmoid")
        return terms


def run(ctx: Context[Config]) -> None:
    """Writes `adapter/` in PEFT's format; below `logs/` the steps, TensorBoard's events and the sampled answers."""
    from engine.fitting import apply_runtime
    from engine.models.devices import accelerator_on, pick_device
    from engine.models.fused_lora import fuse_lora
    from engine.models.lora import add_lora, trainable_parameters
    from engine.models.quantization import check_quantization
    from engine.preferences.pairs import load_pairs
    from engine.training.run import train

    config, scored = ctx.config, ctx.inputs["reference"].handed_down
    device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
    check_quantization(scored["quantization"], scored["dtype"], device)
    accelerator = accelerator_on(device, trackers(ctx))
    policy = open_policy(ctx.inputs, config.model, ctx.sources, **scored)
    name = policy_name(ctx.inputs, config.model)
    model = add_lora(policy, config.lora.lora(), seed=config.seed, base_name=name)
    fuse_lora(model)
    model = accelerator.prepare_model(model.train())
    apply_runtime(ctx, model, training=True)
    pairs = load_pairs(ctx.inputs["subsample"].file("train.parquet"))
    plan = config.plan(len(pairs))
    keeping = upkeep(ctx, plan, device)
    objective = _objective(ctx, model, pairs, keeping.checkpoints)
    proof = _prove(ctx, model, objective)
    watcher = watch(ctx, config.monitor, config.model, accelerator.unwrap_model(model), device, plan.steps)
    trained = train(
        model,
        objective,
        plan,
        config.optimization(),
        accelerator,
        keeping,
        save=lambda: _save(ctx, accelerator.unwrap_model(model)),
        watcher=watcher,
    )
    ctx.hand_down(beta=config.beta, loss=[term.model_dump() for term in config.loss], monitor=watcher.outcome)
    ctx.record(
        **(watcher.kept_numbers if watcher.ends() else trained.means),
        **watcher.outcome,
        steps=trained.steps,
        beta=config.beta,
        pairs=len(pairs),
        pairs_per_second=trained.rows_per_second,
        **trained.resources,
        step0_max_margin=proof.max_margin,
        step0_tolerance=proof.tolerance,
        step0_loss=proof.loss,
        ref_recheck_pairs=proof.pairs,
        ref_recheck_max_difference=proof.max_difference,
        ref_recheck_tolerance=proof.tolerance,
        trainable_parameters=sum(value.numel() for value in trainable_parameters(model).values()),
        device=str(device),
        dtype=scored["dtype"],
        layout=objective.passes.forward.layout,
        head=objective.passes.forward.head,
        micro_batch_tokens=objective.passes.budget,
    )


def _save(ctx: Context[Config], model: "PeftModel") -> None:
    model.save_pretrained(str(ctx.work / "adapter"), save_embedding_layers=False)
    (ctx.work / "adapter" / "README.md").unlink(missing_ok=True)  # peft's blank card, with a path of this machine in it


def _objective(
    ctx: Context[Config], model: "PeftModel", pairs: "list[TokenPair]", checkpoints: "Checkpoints"
) -> "PreferenceObjective":
    import torch

    from engine.dpo.losses import weighted_sum
    from engine.fitting import training_passes
    from engine.preferences.scores import ref_logps
    from engine.training.objectives import PreferenceObjective

    config = ctx.config
    ref = torch.from_numpy(ref_logps(ctx.inputs["reference"].file("train.parquet"), pairs))
    loss = weighted_sum([term.model_dump() for term in config.loss], config.beta)
    return training_passes(
        ctx,
        model,
        [pair.rows for pair in pairs],
        lambda passes: PreferenceObjective(pairs, ref, loss, config.beta, passes),
        open_tokenizer(ctx.inputs["tokenize"], config.model).pad_token_id or 0,
        checkpoints,
    )


def _prove(ctx: Context[Config], model: "PeftModel", objective: "PreferenceObjective") -> "StepZero":
    """The step-0 proof on pairs that the training seed draws, and others; see `rows_to_prove` for what it can miss.

    On a resume, too, and before the checkpoint is put back: stored scores are held against the untrained adapter.
    """
    from engine.training.proof import prove_step_zero, rows_to_prove

    rows = rows_to_prove([pair.length for pair in objective.pairs], ctx.config.seed)
    proof = prove_step_zero(model, objective, rows, dtype=ctx.inputs["reference"].handed_down["dtype"])
    ctx.log.info(
        "step 0: policy is reference; %d stored scores differ by %.2g nats at most, %.2g are allowed",
        proof.pairs,
        proof.max_difference,
        proof.tolerance,
    )
    return proof


def _sources(config: Config, sources: Sources) -> dict[str, Any]:
    return {**given_policy(config.model, sources), **config.monitor.sources(sources)}


STAGE = Stage(
    name="train",
    config=Config,
    version=3,
    run=run,
    inputs=("tokenize", "subsample", "sft", "reference"),
    sources=_sources,
    # Which pairs share a pass decides which draws of the dropout they get.
    binds=lambda config, runtime, inputs: binds_draws(runtime) if config.lora.dropout else {},
    resumes=has_checkpoint,
)
