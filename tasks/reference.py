"""reference: the log-probability of every scored token under the starting policy, once, for both halves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from engine.config import Strict
from engine.loss_config import PreferenceConfig
from engine.pace import Course
from engine.policies import given_policy, open_policy, open_tokenizer
from engine.scoring_plan import Scoring, has_plan, scoring_folder
from engine.sources import ModelSource
from engine.stage import Context, Stage

if TYPE_CHECKING:
    import torch

    from engine.models.passes import Passes
    from engine.preferences.score_store import Scored

_RECHECKED = 16


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

    def how(self) -> dict[str, str]:
        """How the policy is run, which whoever uses the scores must do alike."""
        return {"dtype": self.dtype, "attention": self.attention, "quantization": self.quantization}


def run(ctx: Context[Config]) -> None:
    """Writes `train.parquet` and `eval.parquet` (SCORES), one row a pair, in the order of the subsample's halves.

    Pairs that were scored before under the same policy are taken over, whatever artifact they were scored for.
    """
    from engine.preferences.pairs import load_pairs
    from engine.preferences.scores import row_key, write_scores

    halves = {half: load_pairs(ctx.inputs["subsample"].file(f"{half}.parquet")) for half in ("train", "eval")}
    store = _store(ctx)
    if ctx.fresh:
        store.set_aside()
    asked = ctx.runtime.model_dump(mode="json", include=set(Scoring.ASKS))
    scoring = Scoring(scoring_folder(ctx.work), [pair for pairs in halves.values() for pair in pairs], store, asked)
    unscored = len(scoring.unscored)
    ctx.log.info("%d pairs to score, %d were scored before", unscored, scoring.reused)
    if unscored:
        _score(ctx, scoring)
    rows = scoring.rows()
    for half, pairs in halves.items():
        ids, keys = [pair.pair_id for pair in pairs], [row_key(pair) for pair in pairs]
        write_scores(ctx.work / f"{half}.parquet", ids, keys, rows)
    ctx.hand_down(**ctx.config.how())
    ctx.record(
        pairs=sum(map(len, halves.values())),
        pairs_scored=unscored,
        pairs_reused=scoring.reused,
        scorer=store.folder.name,
        **ctx.config.how(),
    )


def _score(ctx: Context[Config], scoring: Scoring) -> None:
    """Scores what no run has scored yet; first some of what is taken over, to see that it is this policy's."""
    import time

    from engine.fitting import scoring_passes

    policy = _policy(ctx)
    unscored = scoring.unscored
    pad_id = open_tokenizer(ctx.inputs["tokenize"], ctx.config.model).pad_token_id or 0
    passes = scoring.settle(lambda: scoring_passes(ctx, policy, unscored, pad_id))
    _recheck(ctx, policy, scoring, passes)
    began, course = time.monotonic(), Course(ctx.progress, len(unscored))
    tokens = scoring.score(policy, passes, course.part(len(unscored)))
    ctx.record(
        tokens=tokens,
        tokens_per_second=round(tokens / (time.monotonic() - began)),
        device=str(next(policy.parameters()).device),
        layout=passes.forward.layout,
        head=passes.forward.head,
        score_batch_tokens=passes.budget,
    )


def _policy(ctx: Context[Config]) -> "torch.nn.Module":
    from engine.fitting import apply_runtime
    from engine.models.devices import pick_device, placed
    from engine.models.quantization import check_quantization

    device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
    check_quantization(ctx.config.quantization, ctx.config.dtype, device)
    policy: torch.nn.Module = placed(open_policy(ctx.inputs, ctx.config.model, ctx.sources, **ctx.config.how()), device)
    apply_runtime(ctx, policy, training=False)
    return policy


def _recheck(ctx: Context[Config], policy: "torch.nn.Module", scoring: Scoring, passes: "Passes") -> None:
    """Scores some of the rows again that are taken over. Raises NumericsError when they are another policy's."""
    from engine.errors import NumericsError
    from engine.models.scoring import score_pairs
    from engine.training.proof import tolerance

    taken = scoring.some_taken(_RECHECKED)
    live = score_pairs(policy, [pair for pair, _ in taken], passes)
    largest = least = 0.0
    for (pair, stored), score in zip(taken, live, strict=True):
        gaps = [abs(score.chosen_logps - stored[0]), abs(score.rejected_logps - stored[1])]
        gap, allowed = max(gaps), tolerance(pair, stored, ctx.config.dtype)
        if not all(each <= allowed for each in gaps):  # also where one is NaN
            raise NumericsError(
                "scores that an earlier run stored are not this policy's",
                expected=f"a difference of at most {allowed:.2g} nats",
                found=f"{gap:.4g} nats",
                where=f"pair {pair.pair_id}",
                fix="score all of them again: dpo run --only reference --force",
            )
        largest, least = max(largest, gap), min(least or allowed, allowed)
    ctx.record(reused_recheck_pairs=len(taken), reused_recheck_max_difference=largest, reused_recheck_tolerance=least)


def _store(ctx: Context[Config]) -> "Scored":
    """What has been scored under this policy by any run. It lies with the data: it outlives a move of the artifacts."""
    from engine.preferences.score_store import SCORES, ScoreStore

    policy: Any = ctx.inputs["sft"].digest if "sft" in ctx.inputs else given_policy(ctx.config.model, ctx.sources)
    scorer = {"version": STAGE.version, "policy": policy, "model": ctx.config.model.identity(), **ctx.config.how()}
    return ScoreStore(ctx.runtime.data / SCORES).of(scorer)


def _skip(config: Config, configs: Mapping[str, Strict]) -> str | None:
    """Scores are for the loss: one that asks for none leaves nothing to do. What runs the policy borrows the config."""
    trained = configs.get("train")
    if not isinstance(trained, PreferenceConfig) or not trained.reference_free:
        return None
    return f"{' + '.join(term.name for term in trained.loss)} needs no reference"


STAGE = Stage(
    name="reference",
    config=Config,
    version=2,
    run=run,
    inputs=("tokenize", "subsample", "sft"),
    sources=lambda config, sources: given_policy(config.model, sources),
    skip=_skip,
    resumes=has_plan,
)
