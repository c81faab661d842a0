"""evaluate: the trained policy on held-out pairs, and side by side with the starting policy on questions."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from engine.config import Located, Seed, Strict
from engine.fingerprint import digest
from engine.judge_model import JudgeConfig, check_judge, judged
from engine.pace import Course
from engine.policies import given_policy, policy_content
from engine.preferences.schema import EVALUATED, GENERATIONS, TOKENS, WEIGHTED, read_table, writer
from engine.prompts import Prompt, identify_sets, open_sets
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage
from engine.trained_loss import loss_of

if TYPE_CHECKING:
    from engine.evaluation.pairs import PairEvaluation
    from engine.evaluation.subject import Subject
    from engine.evaluation.sums import Sums
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
    judge: JudgeConfig = JudgeConfig()
    seed: Seed = Field(default=0, description="of what is sampled, and of the intervals")


def run(ctx: Context[Config]) -> None:
    """Writes `metrics.json`, `pairs.parquet` (EVALUATED) and `generations.parquet` (GENERATIONS).

    Where the loss has an `ld_alpha`, also `weighted.parquet` (WEIGHTED): what it was taken of.

    Raises:
        ConfigError: a judge is wanted, and its key or client library is missing.
    """
    from engine.evaluation.answers import generation_intervals, generation_metrics
    from engine.evaluation.subject import Subject
    from engine.preferences.pairs import load_pairs

    check_judge(ctx.config.judge)
    subject = Subject.open(ctx, ctx.inputs, ctx.config.model, ctx.inputs["train"].handed_down["how"])
    pairs = load_pairs(ctx.inputs["subsample"].file("eval.parquet"))
    prompts = open_sets(ctx.config.prompts, ctx.sources)
    passes = 1 if "reference" in ctx.inputs else 2
    # Each prompt is answered twice, and one answer is measured.
    course = Course(ctx.progress, passes * len(pairs) + 3 * len(prompts))
    found = _score(ctx, subject, pairs, course)
    answered = _generate(ctx, subject, prompts, course)
    metrics = found.numbers | generation_metrics(answered, judge_asked=ctx.config.judge.asked)
    intervals = found.intervals | generation_intervals(answered, ctx.config.seed)
    _write(ctx, "pairs.parquet", EVALUATED, found.rows)
    _write(ctx, "generations.parquet", GENERATIONS, answered)
    told = {
        "metrics": metrics,
        "intervals": intervals,
        "slices": found.slices,
        "calibration": found.calibration,
        "identity": _identity(ctx),
    }
    (ctx.work / "metrics.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", "utf-8")
    beta = ctx.inputs["train"].handed_down["beta"]
    ctx.record(**metrics, intervals=intervals, beta=beta, generation=ctx.config.generation)


def _identity(ctx: Context[Config]) -> dict[str, Any]:
    """What the numbers mean something under: two evaluations are compared only where it allows that."""
    trained, config = ctx.inputs["train"].handed_down, ctx.config
    policy = policy_content(ctx.inputs, config.model, ctx.sources)
    return {
        **loss_of(trained),
        "reference": digest({"policy": policy, **trained["how"]})[:16],
        "generation": config.generation,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "prompts": identify_sets(config.prompts, ctx.sources),
    }


def _score(ctx: Context[Config], subject: "Subject", pairs: "list[TokenPair]", course: Course) -> "PairEvaluation":
    from engine.dpo.loss_table import build
    from engine.evaluation.pairs import evaluate_pairs, weighted_rows
    from engine.evaluation.sums import Sums, pair_logps
    from engine.judging import is_refusal

    path, trained = ctx.inputs["subsample"].file("eval.parquet"), ctx.inputs["train"].handed_down
    loss = build({**loss_of(trained), "use_weighting": False})  # WPO weighs pairs to train on
    policy = Sums.of(subject.pair_scores(ctx, pairs, progress=course.part(len(pairs), "pairs")), loss.ld_alpha)
    ref = _ref(ctx, subject, pairs, loss.ld_alpha, course)
    refuses = [is_refusal(text) for text in read_table(path, TOKENS, ["chosen"])["chosen"].to_pylist()]
    logps = pair_logps(pairs, policy, ref)
    if loss.ld_alpha is not None:
        _write(ctx, "weighted.parquet", WEIGHTED, weighted_rows(pairs, logps))
    return evaluate_pairs(pairs, logps, trained["beta"], loss, refuses, ctx.config.seed)


def _ref(
    ctx: Context[Config], subject: "Subject", pairs: "list[TokenPair]", ld_alpha: float | None, course: Course
) -> "Sums":
    """The logps under the starting policy: stored ones, or new ones where the loss needed none.

    They say how far the training went, whatever its loss.
    """
    import torch

    from engine.evaluation.sums import Sums
    from engine.preferences.scores import ref_logps

    if "reference" not in ctx.inputs:
        told = course.part(len(pairs), "pairs before the training")
        return Sums.of(subject.pair_scores(ctx, pairs, reference=True, progress=told), ld_alpha)
    stored = ctx.inputs["reference"].file("eval.parquet")
    plain = torch.from_numpy(ref_logps(stored, pairs))
    return Sums(plain, None if ld_alpha is None else torch.from_numpy(ref_logps(stored, pairs, ld_alpha)))


def _generate(
    ctx: Context[Config], subject: "Subject", prompts: Sequence[Prompt], course: Course
) -> list[dict[str, Any]]:
    """GENERATIONS rows of the starting policy (`start`: the adapter switched off) and of the trained one (`dpo`)."""
    from dataclasses import replace

    from engine.evaluation.answers import judge
    from engine.models.generation import PRESETS

    config = ctx.config
    settings = replace(PRESETS[config.generation], max_new_tokens=config.max_new_tokens)
    cache = ctx.work / ".judged.jsonl"  # what was answered outlives a kill
    rows: list[dict[str, Any]] = []
    for policy, shown in (("start", "answers before"), ("dpo", "answers after")):
        told = course.part(len(prompts), shown)
        said = subject.answers(ctx, prompts, settings, config.seed, reference=policy == "start", progress=told)
        kl = None
        if policy == "dpo":
            kl = subject.divergence(ctx, said, progress=course.part(len(said), "answers measured"))
        verdicts = judged([prompt.prompt for prompt in prompts], [each.text for each in said], config.judge, cache)
        rows += judge(policy, prompts, said, kl=kl, judged_refused=verdicts)
    return rows


def _write(ctx: Context[Config], name: str, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
    with writer(ctx.work / name, schema) as file:
        file.write_table(pa.Table.from_pylist(list(rows), schema=schema))


def _sources(config: Config, sources: Sources) -> dict[str, Any]:
    if sources.network:  # a run: what it would fail of at its end is told at its beginning
        check_judge(config.judge)
    return given_policy(config.model, sources) | {"prompts": identify_sets(config.prompts, sources)}


STAGE = Stage(
    name="evaluate",
    config=Config,
    version=4,
    run=run,
    inputs=("tokenize", "subsample", "sft", "reference", "train"),
    sources=_sources,
)
