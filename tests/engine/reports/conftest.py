"""Sealed artifacts with the numbers of a real run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.preferences.schema import GENERATIONS, writer
from engine.store import Artifact, Store

EVALUATED = {
    "eval_loss": 0.2,
    "eval_rewards/accuracies": 0.975,
    "eval_rewards/margins": 4.25,
    "eval_longer_wins": 0.5,
    "start/adversarial/refused": 0.02,
    "dpo/adversarial/refused": 1.0,
    "start/normal/right": 0.99,
    "dpo/normal/right": 0.98,
    "dpo/normal/count": 200,
    "eval_pairs": 400,
}


@pytest.fixture
def seal(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals an artifact of a stage with some metrics; evaluate gets generations when rows are given."""
    store = Store(tmp_path / "store")

    def make(stage: str, metrics: dict[str, Any], generations: list[dict[str, Any]] | None = None) -> Artifact:
        work = store.work(stage, "key1", fresh=True)
        (work / "a.bin").write_bytes(b"x" * 2048)
        if generations is not None:
            import pyarrow as pa

            with writer(work / "generations.parquet", GENERATIONS) as file:
                file.write_table(pa.Table.from_pylist(generations, schema=GENERATIONS))
        manifest = {"payload": {}, "metrics": metrics, "seconds": 75.0, "sealed_at": "2026-01-02T03:04:05+0000"}
        return store.seal(stage, "key1", work, manifest)

    return make


@pytest.fixture
def evaluated() -> dict[str, Any]:
    return dict(EVALUATED)
