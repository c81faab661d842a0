"""Sealed artifacts with the numbers of a real run."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.preferences.schema import GENERATIONS, writer
from engine.promotion.state import Action, Event, State
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
    "intervals": {"eval_rewards/accuracies": [0.955, 0.9875], "dpo/adversarial/refused": [0.981, 1.0]},
}
OURS, OLD = "0123456789abcdef", "fedcba9876543210"
COMPARISON = {
    "in_service": {"version": OLD, "beta": 0.1},
    "unavailable": "",
    "pairs": 393,
    "trained_on": 7,
    "tonight": {"eval_rewards/accuracies": 0.97, "eval_rewards/margins": 4.5, "dpo/adversarial/refused": 1.0},
    "service": {"eval_rewards/accuracies": 0.95, "dpo/adversarial/refused": 0.5, "start/normal/refused": 0.0},
    "differences": {
        "dpo/adversarial/refused": {"value": 0.5, "low": 0.4, "high": 0.6},
        "start/normal/refused": {"value": 0.0, "low": 0.0, "high": 0.0},
        "eval_rewards/accuracies": {"value": 0.02, "low": -0.004, "high": 0.05},
    },
    "not_comparable": {"eval_rewards/margins": "β differs: 0.1 and 0.2"},
}
MET = {
    "name": "better-than-length",
    "outcome": "passed",
    "words": "97.5% is above 50.0%",
    "reason": "length is no merit",
}
UNMET = {
    "name": "over-refusal",
    "outcome": "failed",
    "words": "refuses 62.0% of <normal> requests",
    "reason": "they are",
}
OFF = {"name": "no-worse", "outcome": "not applied", "words": "no model is in service", "reason": "drift"}


@pytest.fixture
def seal(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals an artifact of a stage with some metrics; evaluate gets generations when rows are given.

    What else is given by name becomes a JSON file of the artifact; `reads` are the artifacts that it was made of.
    """
    store = Store(tmp_path / "store")

    def make(
        stage: str,
        metrics: dict[str, Any],
        generations: list[dict[str, Any]] | None = None,
        /,
        *,
        key: str = "key1",
        sealed_at: str = "2026-01-02T03:04:05+0000",
        reads: Sequence[Artifact] = (),
        **files: Any,
    ) -> Artifact:
        work = store.work(stage, key, fresh=True)
        (work / "a.bin").write_bytes(b"x" * 2048)
        for name, content in files.items():
            (work / f"{name}.json").write_text(json.dumps(content), "utf-8")
        if generations is not None:
            import pyarrow as pa

            with writer(work / "generations.parquet", GENERATIONS) as file:
                file.write_table(pa.Table.from_pylist(generations, schema=GENERATIONS))
        payload = {"inputs": {each.stage: each.digest for each in reads}}
        manifest = {"payload": payload, "metrics": metrics, "seconds": 75.0, "sealed_at": sealed_at}
        return store.seal(stage, key, work, manifest)

    return make


@pytest.fixture
def comparison() -> dict[str, Any]:
    return copy.deepcopy(COMPARISON)


@pytest.fixture
def gated(seal: Callable[..., Artifact], comparison: dict[str, Any]) -> Callable[..., dict[str, Artifact]]:
    """The artifacts of a run up to the gate, by stage; given the gate's verdict and rules."""

    def make(
        verdict: str = "promote", rules: Sequence[dict[str, Any]] = (MET,), **compared: Any
    ) -> dict[str, Artifact]:
        evaluate = seal("evaluate", EVALUATED)
        compare = seal("compare", {}, comparison=comparison | compared)
        promote = seal(
            "promote",
            {
                "service": "mine",
                "verdict": verdict,
                "rules_failed": [rule["name"] for rule in rules if rule["outcome"] == "failed"],
            },
            key=OURS,
            reads=[evaluate, compare],
            verdict={"verdict": verdict, "in_service": OLD, "rules": list(rules)},
            handed_down={"candidate": "ours"},
        )
        return {each.stage: each for each in (evaluate, compare, promote)}

    return make


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., None]:
    """Says that a version is in service, with which model in it."""

    def make(version: str, candidate: str = "", action: Action = "promoted") -> None:
        folder = tmp_path / "store" / "promoted" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        event = Event("2026-01-02T03:04:05+0000", action, version, candidate or f"model of {version}", None, "run")
        (folder / "state.json").write_text(State((event,)).to_json(), "utf-8")

    return make


@pytest.fixture
def evaluated() -> dict[str, Any]:
    return dict(EVALUATED)
