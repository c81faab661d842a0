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
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the frozen weights; bfloat16 halves memory on a GPU"
    )
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="transformers' attention implementation")


def run(ctx: Context[Config]) -> None:
    """Writes `train.parquet` and `eval.parquet` (SCORES), one row a pair, in the order of the subsample's halves."""
    import time

    from engine.models.devices import pick_device
    from engine.models.scoring import score_pairs
    from engine.preferences.pairs import load_pairs
    from engine.preferences.scores import write_scores

    config = ctx.config
    device = pick_device(ctx.runtime.device, ctx.runtime.threads)
    pad_id = open_tokenizer(ctx.inputs["tokenize"], config.model).pad_token_id or 0
    policy = open_policy(ctx.inputs, config.model, ctx.sources, dtype=config.dtype, attention=config.attention)
    policy.to(device)
    halves = {half: load_pairs(ctx.inputs["subsample"].file(f"{half}.parquet")) for half in ("train", "eval")}
    total, done, tokens, began = sum(map(len, halves.values())), 0, 0, time.monotonic()
    for half, pairs in halves.items():
        scores = score_pairs(
            policy,
            pairs,
            batch_pairs=ctx.runtime.score_batch_pairs,
            pad_id=pad_id,
            progress=lambda count, before=done: ctx.progress(before + count, total),  # type: ignore[misc]
        )
        write_scores(ctx.work / f"{half}.parquet", pairs, scores)
        done += len(pairs)
        tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    seconds = time.monotonic() - began
    ctx.hand_down(dtype=config.dtype, attention=config.attention)
    ctx.record(
        pairs_scored=total,
        tokens=tokens,
        tokens_per_second=round(tokens / seconds),
        device=str(device),
        dtype=config.dtype,
        attention=config.attention,
    )


STAGE = Stage(
    name="reference",
    config=Config,
    version=1,
    run=run,
    inputs=("tokenize", "subsample", "sft"),
    sources=lambda config, sources: given_policy(config.model, sources),
)
