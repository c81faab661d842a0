"""A DPO run in miniature: a random policy under an adapter with dropout, its own scores as the reference."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel

from engine.dpo.losses import WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.dpo.reference_free import Sft
from engine.models.forward import Forward
from engine.models.lora import Lora, add_lora, trainable_parameters
from engine.models.passes import Passes
from engine.models.scoring import score_pairs
from engine.preferences.batching import BatchPlan
from engine.preferences.pairs import TokenPair
from engine.training.journal import Journal
from engine.training.listening import StepRecord, Watcher
from engine.training.loop import Optimization
from engine.training.objectives import PreferenceObjective
from engine.training.run import Trained, Upkeep, train
from engine.training.tracker_kinds import Told
from engine.training.trackers import trackers_of

NUMBERS = {"loss": 0.5, "rewards/chosen": 0.25, "rewards/margins": 1.5, "learning_rate": 1e-4}
HOW = Optimization(learning_rate=1e-2, schedule="cosine", warmup_share=0.1)


class Killed(Exception):  # noqa: N818 — it stands for no error
    """Stands for a kill: an error after which nothing is kept that was not kept before."""


@dataclass
class Run:
    """One run in a work folder of its own; `go` starts or continues it.

    Attributes:
        records: the steps that listeners heard of, over all attempts.
    """

    work: Path
    model: PeftModel
    objective: PreferenceObjective
    plan: BatchPlan
    records: list[StepRecord] = field(default_factory=list)

    def go(
        self,
        *,
        dies_after: int = 0,
        by: type[BaseException] = Killed,
        checkpoint_seconds: float = 0.0,
        save: Callable[[], None] = lambda: None,
        watcher: Watcher | None = None,
        **others: Any,
    ) -> Trained:
        """Trains to the end, or until a step after which it dies; `others` are the upkeep's."""

        def listen(record: StepRecord) -> None:
            self.records.append(record)
            if record.step == dies_after:
                raise by

        accelerator = Accelerator(cpu=True, log_with=others.pop("trackers", None))
        upkeep = Upkeep(
            "train",
            self.work,
            logging.getLogger("dpo.train"),
            others.pop("progress", lambda done, total, numbers: None),
            checkpoint_seconds=checkpoint_seconds,
            **{"log_every_steps": 2, **others},
        )
        return train(self.model, self.objective, self.plan, HOW, accelerator, upkeep, listen, save, watcher)

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained."""
        return {name: value.detach().clone() for name, value in trainable_parameters(self.model).items()}


@pytest.fixture(scope="session")
def make_objective(make_llama, make_pairs) -> Callable[..., tuple[PeftModel, PreferenceObjective]]:
    """A policy under a fresh adapter, and the objective over pairs that the policy scored."""

    def make(
        count: int = 10, dropout: float = 0.0, pairs: Sequence[TokenPair] = (), budget: int = 45, **config: Any
    ) -> tuple[PeftModel, PreferenceObjective]:
        policy, pairs = make_llama(**config), pairs or make_pairs(count)
        passes = Passes(Forward("packed", "fused"), budget, pad_id=0)
        scores = score_pairs(policy, pairs, passes)
        ref = torch.tensor([[score.chosen_logps, score.rejected_logps] for score in scores], dtype=torch.float64)
        model = add_lora(policy, Lora(4, 8.0, dropout, "all-linear"), seed=0, base_name="policy")
        loss = WeightedSum([(1.0, Sigmoid(0.1)), (1.0, Sft())])
        return model.train(), PreferenceObjective(pairs, ref, loss, 0.1, passes, whole_ref=ref)

    return make


@pytest.fixture
def make_run(tmp_path, make_objective) -> Callable[..., Run]:
    """A run of 8 steps, four an epoch; a second one in the same folder continues what the first left."""

    def make(name: str = "work", dropout: float = 0.2) -> Run:
        model, objective = make_objective(dropout=dropout)
        return Run(tmp_path / name, model, objective, BatchPlan(10, 3, epochs=2, seed=5))

    return make


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture
def told(tmp_path, monkeypatch) -> Told:
    """What a training tells trackers that it is, where nobody is signed in with any."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run = "train-874e7fcf00000000"
    config = {"beta": 0.1, "lora.rank": 4, "model.name": "", "loss": '[{"name": "sigmoid"}]'}
    store = tmp_path / "artifacts" / "trackers"
    return Told("project", "demo train beta=0.1 874e7fcf", "train", run, config, tmp_path / "logs", store)


@pytest.fixture
def attempt(told) -> Callable[..., None]:
    """Tells trackers of a training's steps from `first` to `last`; what `ends` is raised after those."""

    def go(*names: str, first: int = 1, last: int = 3, ends: BaseException | None = None) -> None:
        accelerator = Accelerator(cpu=True, log_with=trackers_of(names, told))
        with Journal(told.logs, accelerator, told.stage) as journal:
            journal.begin(first - 1)
            for step in range(first, last + 1):
                journal.add(StepRecord(step, last, NUMBERS | {"loss": step / 2}), {"tokens_per_second": 9.0})
            if ends:
                raise ends

    return go


@pytest.fixture
def warned(caplog) -> Callable[[], list[str]]:
    """What was said of trackers."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "dpo"]


@pytest.fixture
def untraced() -> Iterator[None]:
    """Nothing is traced, by coverage neither, however often that was begun in this process.

    A traced Python 3.11 runs RESUME again and again while an exception waits for another thread.
    """
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(threads)
    sys.settrace(here)
