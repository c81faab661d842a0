"""The flow over toy stages that have the real names and wiring, and a Prefect server for the slow tests."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

os.environ["DO_NOT_TRACK"] = "1"  # read when prefect is imported
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from engine.config import Strict
from engine.stage import Context, Stage
from flows import pipeline
from flows.pipeline import dpo_pipeline
from tasks import STAGES


class Toy(Strict):
    beta: float = 0.1
    seed: int = 0
    pairs: int = 10
    policy: str = ""


@dataclass
class Story:
    """The flow over toy stages.

    Attributes:
        ran: names of the stages that worked, in order, over all runs.
        hooks: what a stage does in the middle of its work, by stage.
        profile: the path to give the flow.
    """

    root: Path
    ran: list[str] = field(default_factory=list)
    hooks: dict[str, Callable[[Context[Any]], None]] = field(default_factory=dict)

    @property
    def profile(self) -> str:
        return str(self.root / "toy.toml")

    def run(self, **parameters: Any) -> State[Any]:
        """One run of the flow; its last state, whether it failed or not."""
        return dpo_pipeline(profile=self.profile, **parameters, return_state=True)

    def work(self, ctx: Context[Toy]) -> None:
        self.ran.append(ctx.stage)
        ctx.log.info("the log of %s", ctx.stage)
        if ctx.stage in self.hooks:
            self.hooks[ctx.stage](ctx)
        ctx.progress(1, 2, loss=0.5)
        (ctx.work / "out.txt").write_text(f"{ctx.stage} {ctx.config}", "utf-8")
        ctx.record(loss=0.5)

    def stages(self) -> list[Stage[Any]]:
        def skip(config: Toy) -> str | None:
            return f"{config.policy} is given" if config.policy else None

        return [Stage(each.name, Toy, 1, self.work, each.inputs, skip=skip, keeps=each.keeps) for each in STAGES]


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    """Toy stages below tmp_path instead of the real ones, and retries that do not wait."""
    made = Story(tmp_path)
    Path(made.profile).write_text(
        f"[runtime]\nartifacts = '{tmp_path / 'artifacts'}'\ndata = '{tmp_path / 'data'}'\nlock_wait_seconds = 0\n"
    )
    monkeypatch.setattr(pipeline, "STAGES", made.stages())
    monkeypatch.setattr(pipeline, "SHARED", {})
    for stage in STAGES:
        monkeypatch.setattr(getattr(pipeline, stage.name), "retry_delay_seconds", 0)
    return made


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A Prefect server of the test session's own, which is also the one that the flow talks to."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """No test leaves a level on the project's logger."""
    level = logging.getLogger("dpo").level
    yield
    logging.getLogger("dpo").setLevel(level)
