"""A tiny workload that all sides are given."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are not installed

from benchmarks.serving import Job
from benchmarks.workload import PROFILES, SHAPES, make_model, make_pairs, write_model, write_pairs

PAIRS = 8


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Eight short pairs and a tiny model."""
    folder, shape = tmp_path_factory.mktemp("workload"), SHAPES["tiny"]
    write_pairs(folder / "pairs.parquet", make_pairs(PAIRS, PROFILES["short"], shape.vocabulary))
    write_model(folder, make_model(shape, torch.float32, "cpu"))
    return Job(str(folder), max_length=PROFILES["short"].max_length)
