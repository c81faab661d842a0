"""The stages, one file each. `STAGES` is the only list of them, in the order they run."""

from typing import Any

from engine.sources import ModelSource
from engine.stage import Stage
from tasks import download, evaluate, reference, sft, subsample, tokenize, train

STAGES: list[Stage[Any]] = [
    download.STAGE,
    tokenize.STAGE,
    subsample.STAGE,
    sft.STAGE,
    reference.STAGE,
    train.STAGE,
    evaluate.STAGE,
]

# Tables of a profile that every stage with a field of that name receives.
SHARED = {"model": ModelSource}
