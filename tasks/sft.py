"""sft: makes the starting policy, which is also DPO's reference. Skipped when a policy is given."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from engine.config import Located, Runtime, Seed, Strict
from engine.policies import open_tokenizer, place_of
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage
from engine.store import Artifact
from engine.tracking import trackers
from engine.training_config import LoraConfig, TrainingConfig, binds_draws, has_checkpoint, upkeep

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from engine.preferences.instructions import Instruction
    from engine.preferences.ledger import Ledger
    from engine.preferences.pairs import TokenRow
    from engine.preferences.reading import Record


class Architecture(Strict):
    """The small Llama that is made where no model is named."""

    hidden_size: int = Field(default=128, ge=8)
    intermediate_size: int = Field(default=352, ge=8)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _heads_divide_it(self) -> Self:
        if self.hidden_size % (2 * self.heads):  # rotary positions turn pairs of numbers
            raise ValueError(f"hidden_size ({self.hidden_size}) a multiple of twice the heads ({self.heads})")
        return self


class Config(TrainingConfig):
    """What decides the starting policy."""

    model: ModelSource = ModelSource()
    method: Literal["full", "lora"] = Field(default="full", description="all weights, or an adapter that is merged")
    data: Annotated[str, Located()] = Field(
        default="chosen", description="chosen: the training pairs' chosen side; embedded; files; or a Hub data set"
    )
    data_revision: Annotated[str, Located()] = "main"
    data_subset: str = Field(default="", description="configuration of the Hub data set, where it has several")
    data_split: str = "train"
    embedded_examples: int = Field(default=6000, ge=1, description='size of data = "embedded"')
    embedded_seed: Seed = 0
    architecture: Architecture = Architecture()
    # Its dropout is free: what is trained here is merged before it is anybody's reference.
    lora: LoraConfig = LoraConfig(rank=32, alpha=64.0, dropout=0.1)
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    epochs: int = Field(default=3, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    refused_share: float = Field(default=0.05, ge=0, le=1, description="unusable examples that are borne")

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.method == "full" and self.dtype != "float32":
            raise ValueError(f'dtype = "float32" for method = "full": small steps are lost in {self.dtype} weights')
        if self.method == "lora" and not (self.model.name or self.model.policy):
            raise ValueError('a model for method = "lora": an adapter on random weights learns nothing')
        return self


def run(ctx: Context[Config]) -> None:
    """Writes `policy/`, a whole model with its tokenizer; with LoRA the adapter too; below `logs/` the steps.

    With data of its own also `ledger.parquet`; what became of the training pairs is in the ledgers above.
    """
    from engine.fitting import apply_runtime, training_passes
    from engine.models.devices import accelerator_on, pick_device
    from engine.training.objectives import SftObjective
    from engine.training.run import train

    config = ctx.config
    device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
    accelerator = accelerator_on(device, trackers(ctx))
    examples = _examples(ctx)
    model = accelerator.prepare_model(_model(ctx).train())
    apply_runtime(ctx, model, training=True)
    pad_id = open_tokenizer(ctx.inputs["tokenize"], config.model).pad_token_id or 0
    plan = config.plan(len(examples))
    keeping = upkeep(ctx, plan, device)
    groups = [(example,) for example in examples]
    objective = training_passes(
        ctx, model, groups, lambda passes: SftObjective(examples, passes), pad_id, keeping.checkpoints
    )
    trained = train(
        model,
        objective,
        plan,
        config.optimization(config.lora.plus_ratio if config.method == "lora" else 0.0),
        accelerator,
        keeping,
        save=lambda: _save(ctx, accelerator.unwrap_model(model)),
    )
    ctx.record(
        **trained.means,
        steps=trained.steps,
        examples=len(examples),
        examples_per_second=trained.rows_per_second,
        **trained.resources,
        parameters=sum(value.numel() for value in model.parameters()),
        device=str(accelerator.device),
        dtype=config.dtype,
    )


def _model(ctx: Context[Config]) -> "PreTrainedModel | torch.nn.Module":
    import torch

    from engine.models.fused_lora import fuse_lora
    from engine.models.loading import check_vocabulary, load_model, new_model
    from engine.models.lora import add_lora

    config = ctx.config
    torch.manual_seed(config.seed)  # of the dropout that a base may have
    tokenizer = open_tokenizer(ctx.inputs["tokenize"], config.model)
    if not config.model.name:
        limits = ctx.inputs["tokenize"].handed_down
        return new_model(
            vocab_size=len(tokenizer),
            **config.architecture.model_dump(),
            max_positions=2 * limits["max_length"],
            pad_id=tokenizer.pad_token_id,
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            seed=config.seed,
        )
    base = place_of(config.model.name, config.model.revision, config.model, ctx.sources)
    model = load_model(base, dtype=config.dtype)
    check_vocabulary(model, tokenizer, base.name)
    if config.method == "full":
        return model
    adapted = add_lora(model, config.lora.lora(), seed=config.seed, base_name=base.name)
    fuse_lora(adapted)
    return adapted


def _save(ctx: Context[Config], model: Any) -> None:
    from engine.models.anchored import save_trained

    if hasattr(model, "merge_and_unload"):
        save_trained(model, ctx.work)
        model = model.merge_and_unload()
    model.save_pretrained(str(ctx.work / "policy"))
    open_tokenizer(ctx.inputs["tokenize"], ctx.config.model).save_pretrained(str(ctx.work / "policy"))


def _examples(ctx: Context[Config]) -> "list[TokenRow]":
    from engine.preferences.ledger import Ledger
    from engine.preferences.pairs import load_pairs
    from engine.preferences.templates import template
    from engine.preferences.tokenizing import Limits
    from engine.training.examples import token_rows

    if ctx.config.data == "chosen":
        return [pair.chosen for pair in load_pairs(ctx.inputs["subsample"].file("train.parquet"))]
    tokenized = ctx.inputs["tokenize"]
    form = template(tokenized.handed_down["template"], open_tokenizer(tokenized, ctx.config.model))
    limits = Limits(tokenized.handed_down["max_length"], tokenized.handed_down["max_prompt_length"])
    with Ledger(ctx.work / "ledger.parquet") as ledger:
        rows = token_rows(list(_instructions(ctx, ledger)), form, limits, ledger)
    _check(ctx, len(rows), ledger)
    return rows


def _check(ctx: Context[Config], kept: int, ledger: "Ledger") -> None:
    """Records what was refused and cut; too much refused fails the stage."""
    from engine.preferences.ledger import check_budget
    from engine.training.examples import CUTS

    drops = {reason: count for reason, count in sorted(ledger.counts.items()) if reason not in CUTS}
    refused = sum(drops.values())
    cuts = {reason: ledger.counts.get(reason, 0) for reason in CUTS}
    ctx.record(refused=refused, refused_by_reason=drops, **cuts)
    check_budget(refused, kept + refused, ctx.config.refused_share, drops, ctx.stage, ledger.path)


def _instructions(ctx: Context[Config], ledger: "Ledger") -> "Iterator[Instruction]":
    """Examples that were made up here, or read from files or the Hub; unusable rows go into the ledger."""
    from engine.preferences import smallworld
    from engine.preferences.instructions import Instruction, usable

    config = ctx.config
    if config.data != "embedded":
        for records in _opened(ctx):
            yield from usable(records, ledger)
        return
    for number, row in enumerate(smallworld.instructions(config.embedded_examples, config.embedded_seed), 1):
        yield Instruction([{"role": "user", "content": row["prompt"]}], row["response"], "embedded", number)


def _opened(ctx: Context[Config]) -> "Iterator[Iterator[Record]]":
    """The rows of each file, or of the data set on the Hub."""
    from engine.preferences.hub import read_hub
    from engine.preferences.instructions import is_local
    from engine.preferences.reading import read

    config = ctx.config
    if is_local(config.data):
        yield from (read(path) for path in ctx.sources.files(config.data))
    else:
        commit = ctx.sources.commit(config.data, config.data_revision, "dataset")
        yield read_hub(config.data, config.data_subset, config.data_split, commit)


def _sources(config: Config, sources: Sources) -> dict[str, Any]:
    from engine.preferences.instructions import is_local

    model = config.model
    found: dict[str, Any] = {"base": sources.weights(model.name, model.revision)} if model.name else {}
    if config.data == "chosen":
        return found | {"data": "chosen"}
    if config.data == "embedded":
        from engine.preferences import smallworld

        return found | {"data": ["embedded", smallworld.VERSION]}
    if is_local(config.data):
        return found | {"data": sources.file_contents(config.data)}
    return found | {"data": f"{config.data}@{sources.commit(config.data, config.data_revision, 'dataset')}"}


def _skip(config: Config, configs: Mapping[str, Strict]) -> str | None:
    return f"the policy {config.model.policy} is given" if config.model.policy else None


def _binds(config: Config, runtime: Runtime, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """What decides the draws of dropout where there is some. A named model may have some of its own."""
    draws = config.lora.dropout > 0 if config.method == "lora" else bool(config.model.name)
    return binds_draws(runtime) if draws else {}


STAGE = Stage(
    name="sft",
    config=Config,
    version=2,
    run=run,
    inputs=("tokenize", "subsample"),
    sources=_sources,
    skip=_skip,
    # With data of its own, other preference pairs do not make it another policy.
    needs=lambda config: ("tokenize", "subsample") if config.data == "chosen" else ("tokenize",),
    binds=_binds,
    resumes=has_checkpoint,
)
