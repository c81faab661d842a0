from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from engine.config import Runtime, Strict
from engine.sources import Sources
from engine.stage import Context, Listener
from engine.tracking import hyperparameters, run_name, trackers


class Inner(Strict):
    rank: int = 4
    targets: tuple[str, ...] = ("q", "v")


class Config(Strict):
    beta: float = 0.1
    name: str = "a model"
    lora: Inner = Inner()
    bounds: dict[str, float] = Field(default_factory=dict)
    on: bool = True
    none: str | None = None


class Plain(Strict):
    rate: float = 0.5


@pytest.fixture
def context(tmp_path: Path) -> Any:
    def of(config: Strict, **runtime: Any) -> Context[Any]:
        where = Runtime(artifacts=tmp_path / "artifacts", service="demo", **runtime)
        work = tmp_path / "artifacts" / ".work" / "train-874e7fcfe54d3f6b"
        return Context("train", config, {}, work, where, Sources(tmp_path, network=False), Listener())

    return of


def test_a_run_is_called_by_its_service_stage_beta_and_the_beginning_of_its_key(context):
    assert run_name(context(Config())) == "demo train beta=0.1 874e7fcf"
    assert run_name(context(Plain())) == "demo train 874e7fcf"


def test_the_config_goes_along_flat_in_values_that_every_tracker_takes_and_without_secrets(context, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "very-secret-words")
    told = hyperparameters(context(Config(name="https://me:pass@host/very-secret-words")))
    assert told == {
        "beta": 0.1,
        "name": "https://***@host/***",
        "lora.rank": 4,
        "lora.targets": '["q", "v"]',
        "bounds": "{}",
        "on": True,
        "none": "null",
    }


def test_the_trackers_of_the_runtime_are_told_and_none_where_none_is_named(context, tmp_path):
    assert trackers(context(Config(), trackers=[])) == []
    [tracker] = trackers(context(Config(), tracker_project="mine"))
    assert tracker.name == "tensorboard"
    told = tracker._told
    assert (told.project, told.stage, told.run) == ("mine", "train", "train-874e7fcfe54d3f6b")
    assert told.logs == tmp_path / "artifacts" / ".work" / told.run / "logs"
    assert told.store == tmp_path / "artifacts" / "trackers"
