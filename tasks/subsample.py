"""subsample: N pairs to train on and held-out pairs to judge with, neither ever moving between the two."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from engine.config import Seed, Strict
from engine.errors import DataError
from engine.preferences.ledger import Ledger
from engine.preferences.sampling import Census, Halves, Positions, census, copy_rows, halves, rows_at
from engine.stage import Context, Stage

_DETAILS = {
    "duplicate": "an earlier row is the same pair",
    "contradiction": "another row prefers the same two responses to the same prompt the other way round",
}

Count = Annotated[int, Field(ge=1)] | Literal["all"]


class Config(Strict):
    """How many pairs, and how many of them are held out."""

    pairs: Count = Field(default=25_000, description="pairs to train on, or all")
    eval_share: float = Field(default=0.05, gt=0, lt=1, description="share of the prompts that is held out")
    eval_pairs: Count = Field(default="all", description="at most that many held-out pairs")
    seed: Seed = Field(default=0, description="another seed, another choice and another held-out half")


def run(ctx: Context[Config]) -> None:
    """Writes train.parquet and eval.parquet (TOKENS, rows in the order of the input) and ledger.parquet.

    Raises:
        DataError: fewer pairs than asked for, or none held out.
    """
    config = ctx.config
    source = ctx.inputs["tokenize"].file("pairs.parquet")
    counted = census(source, config.seed)
    ctx.progress(1, 3)
    _enter(counted, source, ctx.work / "ledger.parquet")
    found = halves(counted, config.eval_share)
    train, evaluation = _training(config, found), _evaluation(config, found)
    ctx.progress(2, 3)
    copy_rows(source, ctx.work / "train.parquet", train)
    copy_rows(source, ctx.work / "eval.parquet", evaluation)
    ctx.progress(3, 3)
    _record(ctx, counted, found, len(train), len(evaluation))


def _training(config: Config, found: Halves) -> Positions:
    there = len(found.train)
    if config.pairs == "all":
        if not there:
            raise DataError(
                "no pair is left to train on",
                found=f"{len(found.evaluation):,} pairs, all of them held out",
                fix="give more pairs, or set subsample.eval_share lower",
            )
        return found.train
    if config.pairs > there:
        raise DataError(
            f"{config.pairs:,} training pairs were asked for, and there are {there:,}",
            expected=f"subsample.pairs of at most {there:,}",
            found=f"{there:,}, and {len(found.evaluation):,} held out; duplicates and contradictions do not count",
            fix='give more pairs, or set subsample.pairs to that many or to "all"',
        )
    return found.train[: config.pairs]


def _evaluation(config: Config, found: Halves) -> Positions:
    if not len(found.evaluation):
        raise DataError(
            "no pair is held out, so nothing could be judged",
            expected="at least one held-out pair",
            found=f"{len(found.train):,} pairs and subsample.eval_share = {config.eval_share}",
            fix="set subsample.eval_share higher, give more pairs, or take another subsample.seed",
        )
    return found.evaluation if config.eval_pairs == "all" else found.evaluation[: config.eval_pairs]


def _enter(counted: Census, source: Path, target: Path) -> None:
    """Enters every row that was set aside."""
    positions = np.fromiter(counted.reasons, dtype=np.int64)
    with Ledger(target) as ledger:
        tables = rows_at(source, positions, ["pair_id", "source", "row"])
        rows = (row for table in tables for row in table.to_pylist())
        for row, reason in zip(rows, counted.reasons.values(), strict=True):
            ledger.add(reason, **row, detail=_DETAILS[reason])


def _record(ctx: Context[Config], counted: Census, found: Halves, train: int, evaluation: int) -> None:
    pairs_in = len(counted.pair_ranks)
    usable = len(found.train) + len(found.evaluation)
    ctx.record(
        pairs_in=pairs_in,
        train_pairs=train,
        eval_pairs=evaluation,
        duplicates=counted.count("duplicate"),
        contradictions=counted.count("contradiction"),
        set_aside_share=round(len(counted.reasons) / pairs_in, 6),
        held_out_share=round(len(found.evaluation) / usable, 6),
        train_share=round(train / len(found.train), 6),
    )


STAGE = Stage(name="subsample", config=Config, version=1, run=run, inputs=("tokenize",))
