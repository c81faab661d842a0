"""A pipeline of toy stages: the real names and wiring, text files instead of models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import settings
from pydantic import Field

import engine.config
from engine.config import Located, Settings, Strict, load
from engine.pipeline import Pipeline, Selection
from engine.sources import ModelSource
from engine.stage import Context, Listener, Stage

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's doing
settings.load_profile("untimed")

SHARED: dict[str, type[Strict]] = {"model": ModelSource}

MINIATURE = """
[download]
embedded_pairs = 40
[tokenize]
vocab_size = 300
max_length = 96
[subsample]
pairs = 24
eval_share = 0.2
[sft]
learning_rate = 1e-2
epochs = 1
batch_size = 12
architecture = {{ hidden_size = 16, intermediate_size = 32, layers = 1, heads = 2 }}
[train]
learning_rate = 5e-2
batch_size = 6
lora = {{ rank = 2, alpha = 8 }}
[train.monitor]
every_steps = 1000
[evaluate]
prompts = ["{root}/prompts.jsonl"]
max_new_tokens = 2
[runtime]
device = "cpu"
threads = 1
artifacts = "{root}/artifacts"
data = "{root}/data"
lock_wait_seconds = 0
"""


class Download(Strict):
    size: int = Field(default=3, ge=0)
    files: Annotated[str | list[str], Located()] = ""


class Tokenize(Strict):
    model: ModelSource = ModelSource()
    words: int | Literal["all"] = 2
    template: str = "plain"


class Sft(Strict):
    model: ModelSource = ModelSource()
    steps: int = 5


class Term(Strict):
    name: str
    weight: float = 1.0


class Lora(Strict):
    rank: int = 16
    targets: str | list[str] = "all-linear"


class Train(Strict):
    model: ModelSource = ModelSource()
    beta: float = Field(default=0.1, gt=0)
    learning_rate: float = 1e-3
    loss: list[Term] = Field(default=[Term(name="sigmoid")])
    lora: Lora = Lora()


class Evaluate(Strict):
    labels: dict[str, int] = Field(default_factory=dict)


@dataclass
class Toy:
    """The toy stages over a folder of their own.

    Attributes:
        ran: names of the stages that worked, in order.
        hooks: what a stage does in the middle of its work, by stage.
    """

    root: Path
    stages: list[Stage[Any]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    hooks: dict[str, Callable[[Context[Any]], None]] = field(default_factory=dict)

    def settings(self, *overrides: str) -> Settings:
        return load("toy", overrides, self.stages, SHARED)

    def pipeline(
        self, *overrides: str, network: bool = True, listener: Listener | None = None, **selection: Any
    ) -> Pipeline:
        return Pipeline(
            self.stages, self.settings(*overrides), Selection(**selection), listener=listener, network=network
        )

    def run(self, *overrides: str, **selection: Any) -> Pipeline:
        """Runs every stage and returns the pipeline; `ran` holds what worked this time."""
        self.ran.clear()
        pipeline = self.pipeline(*overrides, **selection)
        for stage in self.stages:
            pipeline.run(stage)
        return pipeline

    def plan(self, *overrides: str, **selection: Any) -> dict[str, str]:
        """Action by stage, as `dpo status` would tell it."""
        return {each.stage: each.action for each in self.pipeline(*overrides, network=False, **selection).plan()}

    def work(self, ctx: Context[Any], text: str, **numbers: Any) -> None:
        self.ran.append(ctx.stage)
        (ctx.work / "out.txt").write_text(text, "utf-8")
        if ctx.stage in self.hooks:
            self.hooks[ctx.stage](ctx)
        ctx.progress(1, 2, loss=0.5)
        ctx.record(**numbers)


def _stages(toy: Toy) -> list[Stage[Any]]:
    def download(ctx: Context[Download]) -> None:
        toy.work(ctx, "w " * ctx.config.size, pairs=ctx.config.size, rows_read=4, refused=1)

    def tokenize(ctx: Context[Tokenize]) -> None:
        words = ctx.inputs["download"].file("out.txt").read_text().split()
        kept = words if ctx.config.words == "all" else words[: ctx.config.words]
        toy.work(ctx, " ".join(kept), pairs=len(kept))

    def sft(ctx: Context[Sft]) -> None:
        toy.work(ctx, f"policy {ctx.config.steps}", loss=1.5)

    def train(ctx: Context[Train]) -> None:
        (ctx.work / "logs").mkdir(exist_ok=True)
        (ctx.work / "logs" / "log.txt").write_text("a log")
        toy.work(ctx, f"adapter {ctx.config.beta}", beta=ctx.config.beta, loss=0.25)

    def evaluate(ctx: Context[Evaluate]) -> None:
        toy.work(ctx, "judged " + ctx.inputs["train"].file("out.txt").read_text(), **{"eval_rewards/accuracies": 0.98})

    return [
        Stage("download", Download, 1, download, sources=_files, keeps="data"),
        Stage("tokenize", Tokenize, 1, tokenize, ("download",), sources=_tokenizer),
        Stage("sft", Sft, 1, sft, ("tokenize",), skip=lambda c, _: "a policy is given" if c.model.policy else None),
        Stage("train", Train, 1, train, ("tokenize", "sft"), resumes=lambda work: (work / "out.txt").is_file()),
        Stage("evaluate", Evaluate, 1, evaluate, ("train",)),
    ]


def _files(config: Download, sources: Any) -> dict[str, Any]:
    return {"files": sources.file_contents(config.files)} if config.files else {}


def _tokenizer(config: Tokenize, sources: Any) -> dict[str, Any]:
    return {"tokenizer": sources.tokenizer(config.model.name, config.model.revision)} if config.model.name else {}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Toy stages, a profile `toy` that stores below tmp_path, and configs/ in tmp_path instead of the project's."""
    profiles = tmp_path / "configs"
    profiles.mkdir()
    (profiles / "toy.toml").write_text(
        f"[runtime]\nartifacts = '{tmp_path / 'artifacts'}'\ndata = '{tmp_path / 'data'}'\nlock_wait_seconds = 0\n"
    )
    monkeypatch.setattr(engine.config, "PROFILES", profiles)
    made = Toy(tmp_path)
    made.stages = _stages(made)
    return made


@pytest.fixture(scope="session")
def write_miniature() -> Callable[[Path, Path], None]:
    """Writes a profile of the real stages that takes seconds; its prompt and all it makes lie in `root`."""

    def write(profile: Path, root: Path) -> None:
        profile.write_text(MINIATURE.format(root=root), "utf-8")
        (root / "prompts.jsonl").write_text('{"prompt": "How do I bake a cake?", "kind": "normal"}\n', "utf-8")

    return write
