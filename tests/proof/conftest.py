"""The package `proof`, which is not installed, and a place without a nursery."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from proof.lane import Lane
from proof.places import Place, sha256


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Nothing can be run in it."""
    return Place.new(tmp_path / "place", cast(Lane, None))


@pytest.fixture
def seal(place: Place) -> Callable[..., Path]:
    """Puts an artifact there whose manifest says of its files what they are."""

    def make(stage: str = "train", key: str = "a" * 16, **more: Any) -> Path:
        folder = place.folder / "artifacts" / stage / key
        weights = folder / "adapter" / "adapter_model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"the weights")
        files = {"adapter/adapter_model.safetensors": {"bytes": 11, "sha256": sha256(weights)}}
        manifest = {"stage": stage, "digest": f"of {stage}", "files": files, **more}
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return folder

    return make
