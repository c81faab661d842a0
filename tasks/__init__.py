"""The stages, one file each. `STAGES` is the only list of them, in the order they run."""

from typing import Any

from engine.config import Strict
from engine.judge_model import JudgeConfig
from engine.sources import ModelSource
from engine.stage import Stage
from tasks import compare, download, evaluate, promote, reference, sft, subsample, tokenize, train

STAGES: list[Stage[Any]] = [
    download.STAGE,
    tokenize.STAGE,
    subsample.STAGE,
    sft.STAGE,
    reference.STAGE,
    train.STAGE,
    evaluate.STAGE,
    compare.STAGE,
    promote.STAGE,
]

# Tables of a profile that every stage with a field of that name receives.
SHARED: dict[str, type[Strict]] = {"model": ModelSource, "judge": JudgeConfig}
