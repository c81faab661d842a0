"""evaluate: the trained policy on held-out pairs, and side by side with the starting policy on questions."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from engine.config import Located, Seed, Strict
from engine.policies import given_policy, open_policy, open_tokenizer
from engine.preferences.schema import EVALUATED, GENERATIONS, writer
from engine.prompts import identify_sets, open_sets
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from engine.dpo.losses import PairLogps
    from engine.preferences.pairs import TokenPair


class Config(Strict):
    """What is asked, and how it is answered. β and the loss are those the adapter was trained with."""

    model: ModelSource = ModelSource()
    prompts: Annotated[list[str], Located()] = Field(
        default=["shipped"], min_length=1, description="prompt sets: shipped, embedded, or files"
    )
    generation: Literal["greedy", "seed"] = Field(
        default="greedy", description="seed: top-p 0.9, temperature 0.7, repetition penalty 1.5"
    )
    max_new_tokens: int = Field(default=128, ge=1)
    seed: Seed = 0


def run(ctx: Context[Config]) -> None:
    """Writes `metrics.json`, `pairs.parquet` (EVALUATED) and `generations.parquet` (GENERATIONS)."""
    from engine.dpo.losses import weighted_sum
    from engine.evaluation import generation_metrics, pair_metrics, pair_rows

    model, device = _policy(ctx)
    pairs, logps = _score(ctx, model)
    trained = ctx.inputs["train"].handed_down
    answered = _generate(ctx, model, device)
    loss = weighted_sum(trained["loss"], trained["beta"])
    metrics = pair_metrics(pairs, logps, trained["beta"], loss) | generation_metrics(answered)
    _write(ctx, "pairs.parquet", EVALUATED, pair_rows(pairs, logps, trained["beta"]))
    _write(ctx, "generations.parquet", GENERATIONS, answered)
    (ctx.work / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    ctx.record(**metrics, beta=trained["beta"], generation=ctx.config.generation)


def _policy(ctx: Context[Config]) -> "tuple[PeftModel, torch.device]":
    """The starting policy with the trained adapter on it, on its device."""
    from peft import PeftModel

    from engine.models.devices import pick_device, placed
    from engine.models.fused_lora import fuse_lora
    from engine.models.quantization import check_quantization

    device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
    scored = ctx.inputs["reference"].handed_down
    check_quantization(scored["quantization"], scored["dtype"], device)
    policy = placed(open_policy(ctx.inputs, ctx.config.model, ctx.sources, **scored), device)
    adapted = PeftModel.from_pretrained(policy, str(ctx.inputs["train"].file("adapter")))
    fuse_lora(adapted)
    return adapted.eval(), device


def _score(ctx: Context[Config], model: "PeftModel") -> "tuple[list[TokenPair], PairLogps]":
    import torch

    from engine.dpo.losses import PairLogps
    from engine.fitting import scoring_passes
    from engine.models.scoring import score_pairs
    from engine.preferences.pairs import load_pairs
    from engine.preferences.scores import ref_logps

    pairs = load_pairs(ctx.inputs["subsample"].file("eval.parquet"))
    ref = torch.from_numpy(ref_logps(ctx.inputs["reference"].file("eval.parquet"), pairs))
    pad_id = open_tokenizer(ctx.inputs["tokenize"], ctx.config.model).pad_token_id or 0
    passes = scoring_passes(ctx, model, pairs, pad_id)
    scores = score_pairs(model, pairs, passes, progress=lambda done: ctx.progress(done, len(pairs)))
    chosen, rejected = (
        torch.tensor([getattr(score, f"{side}_logps") for score in scores], dtype=torch.float64)
        for side in ("chosen", "rejected")
    )
    return pairs, PairLogps(chosen, rejected, *ref.unbind(-1))


def _generate(ctx: Context[Config], model: "PeftModel", device: "torch.device") -> list[dict[str, Any]]:
    """GENERATIONS rows of the starting policy (`start`: the adapter switched off) and of the trained one (`dpo`)."""
    from contextlib import nullcontext
    from dataclasses import replace

    from engine.answering import answer
    from engine.evaluation import judge
    from engine.models.generation import PRESETS
    from engine.preferences.templates import template

    config, tokenized = ctx.config, ctx.inputs["tokenize"]
    prompts = open_sets(config.prompts, ctx.sources)
    form = template(tokenized.handed_down["template"], open_tokenizer(tokenized, config.model))
    settings = replace(PRESETS[config.generation], max_new_tokens=config.max_new_tokens)
    rows: list[dict[str, Any]] = []
    for policy, adapter in (("start", model.disable_adapter), ("dpo", nullcontext)):
        with adapter():
            answers = answer(
                model,
                form,
                [prompt.prompt for prompt in prompts],
                settings=settings,
                max_prompt_length=tokenized.handed_down["max_prompt_length"],
                seed=config.seed,
                batch_size=ctx.runtime.generation_batch,
                device=device,
                progress=_halves(ctx, len(rows), 2 * len(prompts)),
            )
        rows += judge(policy, prompts, answers)
    return rows


def _halves(ctx: Context[Config], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: ctx.progress(before + done, total)


def _write(ctx: Context[Config], name: str, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
    with writer(ctx.work / name, schema) as file:
        file.write_table(pa.Table.from_pylist(list(rows), schema=schema))


def _sources(config: Config, sources: Sources) -> dict[str, Any]:
    return given_policy(config.model, sources) | {"prompts": identify_sets(config.prompts, sources)}


STAGE = Stage(
    name="evaluate",
    config=Config,
    version=2,
    run=run,
    inputs=("tokenize", "subsample", "sft", "reference", "train"),
    sources=_sources,
)
