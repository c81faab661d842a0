"""reference: the log-probability of every scored token under the starting policy, once, for both halves."""

from typing import Literal

from pydantic import Field

from engine.config import Strict
from engine.policies import given_policy, open_policy, open_tokenizer
from engine.sources import ModelSource
from engine.stage import Context, Stage


class Config(Strict):
    """What decides the scores. The train and evaluate stages run the policy under the same dtype and attention."""

    model: ModelSource = ModelSource()
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the frozen weights; bfloat16 halves memory, float16 is for older GPUs"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="of the frozen weights, through bitsandbytes; CUDA only"
    )
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="transformers' attention implementation")


def run(ctx: Context[Config]) -> None:
    """Writes `train.parquet` and `eval.parquet` (SCORES), one row a pair, in the order of the subsample's halves."""
    import time

    from engine.fitting import apply_runtime, scoring_passes
    from engine.models.devices import pick_device, placed
    from engine.models.quantization import check_quantization
    from engine.models.scoring import score_pairs
    from engine.preferences.pairs import load_pairs
    from engine.preferences.scores import write_scores

    config = ctx.config
    how = {"dtype": config.dtype, "attention": config.attention, "quantization": config.quantization}
    device = pick_device(ctx.runtime.device, ctx.runtime.threads)
    check_quantization(config.quantization, config.dtype, device)
    policy = placed(open_policy(ctx.inputs, config.model, ctx.sources, **how), device)
    apply_runtime(ctx, policy, training=False)
    halves = {half: load_pairs(ctx.inputs["subsample"].file(f"{half}.parquet")) for half in ("train", "eval")}
    pad_id = open_tokenizer(ctx.inputs["tokenize"], config.model).pad_token_id or 0
    passes = scoring_passes(ctx, policy, [pair for pairs in halves.values() for pair in pairs], pad_id)
    total, done, tokens, began = sum(map(len, halves.values())), 0, 0, time.monotonic()
    for half, pairs in halves.items():
        scores = score_pairs(
            policy,
            pairs,
            passes,
            progress=lambda count, before=done: ctx.progress(before + count, total),  # type: ignore[misc]
        )
        write_scores(ctx.work / f"{half}.parquet", pairs, scores)
        done += len(pairs)
        tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    seconds = time.monotonic() - began
    ctx.hand_down(**how)
    ctx.record(
        pairs_scored=total,
        tokens=tokens,
        tokens_per_second=round(tokens / seconds),
        device=str(device),
        layout=passes.forward.layout,
        head=passes.forward.head,
        score_batch_tokens=passes.budget,
        **how,
    )


STAGE = Stage(
    name="reference",
    config=Config,
    version=1,
    run=run,
    inputs=("tokenize", "subsample", "sft"),
    sources=lambda config, sources: given_policy(config.model, sources),
)
