"""The flow over toy stages that have the real names and wiring, and a Prefect server for the slow tests."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

os.environ["DO_NOT_TRACK"] = "1"  # read when prefect is imported
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from engine.config import Strict
from engine.stage import Context, Stage
from flows import _processes, _reports, pipeline
from flows._line import Line
from flows.pipeline import dpo_pipeline
from tasks import STAGES

ROOT = Path(__file__).parents[2]
ENDS = {"Completed", "Kept", "Failed", "Crashed", "Cancelled"}
# Some seconds of training, with checkpoints close together.
TINY = """
[download]
embedded_pairs = 300
[tokenize]
vocab_size = 400
max_length = 96
[subsample]
pairs = 200
[sft]
data = "embedded"
embedded_examples = 300
epochs = 1
batch_size = 48
[train]
learning_rate = 3e-3
epochs = 8
batch_size = 4
[train.monitor]
every_steps = 1000 # at the end only
[evaluate]
prompts = ["embedded"]
max_new_tokens = 2
[runtime]
threads = 1
checkpoint_every_seconds = 2
generation_batch = 128
"""


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
        def skip(config: Toy, _: object) -> str | None:
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
    for module in (_processes, _reports):
        monkeypatch.setattr(module, "HOME", tmp_path / ".prefect")
    for stage in STAGES:
        monkeypatch.setattr(getattr(pipeline, stage.name), "retry_delay_seconds", 0)
    return made


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A Prefect server of the test session's own, which is also the one that the flow talks to."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    """A line to a server that answers."""
    monkeypatch.setattr(Line, "_client", SimpleNamespace(api_healthcheck=lambda: None))
    return Line()


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """No test leaves a level on the project's logger."""
    level = logging.getLogger("dpo").level
    yield
    logging.getLogger("dpo").setLevel(level)


class Clone:
    """A copy of the project with a Prefect of its own."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        for name in ("engine", "flows", "tasks", "configs"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "configs" / "tiny.toml").write_text(TINY)
        for name in ("prefect.toml", "prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        own = {"PYTHONPATH": str(root), "HOME": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        own |= {"HF_HUB_OFFLINE": "1", "DPO_CRASHED_AFTER": "35"}  # a heartbeat comes every 30 s, no faster
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = kept | own

    def server(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run("-m", "flows._server", *arguments)

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run("-m", "prefect", *arguments, PREFECT_API_URL=f"http://127.0.0.1:{self.port}/api")

    def _run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def dpo(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run("-c", "import sys; from flows.cli import main; sys.exit(main())", *arguments)

    def start(self, deployment: str, *parameters: str) -> str:
        """Starts a run of the tiny profile and returns its id."""
        given = [word for each in ("profile=tiny", *parameters) for word in ("--param", each)]
        started = self.prefect("deployment", "run", f"dpo-pipeline/{deployment}", *given)
        return next(word for word in started.stdout.split() if word.count("-") == 4 and len(word) == 36)

    def state(self, run: str) -> tuple[str, str]:
        """Name and message of a run's state now."""
        state = json.loads(self.prefect("flow-run", "inspect", run, "--output", "json").stdout)["state"]
        return state["name"], state["message"] or ""

    def ends_as(self, run: str) -> tuple[str, str]:
        """Name and message of the state a run ends in."""
        return self.wait_for(lambda: found if (found := self.state(run))[0] in ENDS else None, 150)

    def service(self, name: str) -> psutil.Process:
        return psutil.Process(json.loads((self.root / ".prefect" / f"{name}.json").read_text())["pid"])

    def engines(self) -> list[psutil.Process]:
        """The processes of the flow's runs."""
        below = self.service("worker").children(recursive=True)
        return [each for each in below if "prefect.engine" in " ".join(each.cmdline())]

    def checkpoints(self) -> list[Path]:
        return list((self.root / "artifacts" / ".work").glob("train-*/.checkpoints/step-*"))

    def record(self) -> dict[str, Any]:
        """The latest run's."""
        latest = max((self.root / "artifacts" / "runs").glob("*/run.json"))
        return dict(json.loads(latest.read_text()))

    def adapters(self) -> list[bytes]:
        return [path.read_bytes() for path in self.root.glob("*/train/*/adapter/adapter_model.safetensors")]

    @staticmethod
    def wait_for(found: Callable[[], Any], seconds: float = 90.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = found()
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError("it did not happen in time")

    def nightly_is_on(self) -> bool:
        shown = self.prefect("deployment", "inspect", "dpo-pipeline/nightly", "--output", "json")
        (schedule,) = json.loads(shown.stdout)["schedules"]
        return bool(schedule["active"])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clone = Clone(tmp_path_factory.mktemp("clone"), port)
    deployed = clone.server("deploy", "--port", str(port))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    yield clone
    stopped = clone.server("stop")
    assert "server: stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
