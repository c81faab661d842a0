"""Versions that could go into service: small sealed artifacts with the record that the promote stage leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.fingerprint import digest
from engine.store import Artifact, Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root of artifacts."""
    return tmp_path / "artifacts"


@pytest.fixture
def seal(root: Path) -> Callable[..., Artifact]:
    """Seals an artifact of a stage from texts by file name; its key follows from `name`."""

    def make(stage: str, name: str, files: dict[str, str]) -> Artifact:
        store, key = Store(root), digest(name)[:16]
        work = store.work(stage, key)
        for file, text in files.items():
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            (work / file).write_text(text, "utf-8")
        return store.seal(stage, key, work, {"payload": {"inputs": {}}, "metrics": {}, "seconds": 1.0})

    return make


@pytest.fixture
def version(seal: Callable[..., Artifact]) -> Callable[..., str]:
    """Seals a version with its policy and tokenizer; returns its key."""

    def make(name: str, against: str | None = None, candidate: str = "", **record: Any) -> str:
        made = {stage: seal(stage, f"{stage} of {name}", {"file": name}).key for stage in ("tokenize", "sft")}
        told = {"candidate": candidate or f"model {name}", "against": against, "verdict": "promote", "stages": made}
        files = {"handed_down.json": json.dumps(told | record), "adapter/weights": name, "verdict.json": "{}"}
        return seal("promote", name, files).key

    return make
