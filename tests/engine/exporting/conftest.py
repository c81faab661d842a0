"""A finished model in miniature: the real stages over the embedded world, some seconds, once for all tests."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import Settings, load
from engine.exporting.finished import Finished
from engine.pipeline import Pipeline, Selection
from engine.runs import RunRecord
from tasks import SHARED, STAGES


@dataclass(frozen=True)
class World:
    """The pipeline under a folder; what one test made the others reuse."""

    root: Path

    def settings(self, *overrides: str) -> Settings:
        return load(str(self.root / "tiny.toml"), overrides, STAGES, SHARED)

    def run(self, *overrides: str, **selection: Any) -> str:
        """A recorded run; its id."""
        settings, chosen = self.settings(*overrides), Selection(**selection)
        record = RunRecord.start(settings, chosen, settings.runtime.artifacts)
        pipeline = Pipeline(STAGES, settings, chosen, None, network=False)
        for stage in STAGES:
            pipeline.run(stage)
        for decision in pipeline.decisions.values():
            record.add(decision, pipeline.artifacts.get(decision.stage))
        record.finish("completed")
        return record.id

    def finished(self, *overrides: str) -> Finished:
        """What a whole run under these overrides trained."""
        return Finished.of_run(self.run(*overrides), self.settings().named_runtime)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, write_miniature: Callable[[Path, Path], None]) -> World:
    """The pipeline, with nothing made yet."""
    root = tmp_path_factory.mktemp("world")
    write_miniature(root / "tiny.toml", root)
    return World(root)


@pytest.fixture(scope="session")
def finished(world: World) -> Finished:
    """A model that was trained and judged."""
    return world.finished()


@pytest.fixture(scope="session")
def changed() -> Callable[..., Finished]:
    """The same model with other fields."""
    return replace


@pytest.fixture
def python_blocks() -> Callable[[str], Sequence[str]]:
    """The blocks of Python in a markdown text."""
    return lambda text: re.findall(r"```python\n(.*?)```", text, re.S)
