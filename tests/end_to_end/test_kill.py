"""`dpo run` killed with SIGKILL somewhere inside every stage, and run again each time: nothing torn, nothing lost."""

import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.store import MANIFEST
from tasks import STAGES

pytestmark = pytest.mark.slow

# Dropout, so that going on from a checkpoint must put the random streams back, too.
PROFILE = """
[download]
embedded_pairs = 2000

[tokenize]
vocab_size = 300
max_length = 96

[subsample]
pairs = 80
eval_pairs = 20

[sft]
data = "embedded"
embedded_examples = 200
architecture = { hidden_size = 32, intermediate_size = 64, layers = 2, heads = 2 }
batch_size = 8
epochs = 2
learning_rate = 1e-3

[train]
loss = [{ name = "sigmoid" }, { name = "sft" }]
learning_rate = 1e-3
batch_size = 4
epochs = 3
lora = { rank = 4, alpha = 8, dropout = 0.1 }

[train.monitor]
every_steps = 0

[evaluate]
prompts = ["embedded"]
max_new_tokens = 8

[runtime]
threads = 1
checkpoint_every_seconds = 0.02
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What follows `dpo run`."""
    (tmp_path / "tiny.toml").write_text(PROFILE, "utf-8")
    return ["--profile", str(tmp_path / "tiny.toml")]


def test_a_run_killed_in_every_stage_ends_as_one_that_was_left_alone(
    workplace: Callable[[str], Any], words: list[str]
) -> None:
    wanted, place = workplace("alone").make(*words), workplace("killed")
    seed = random.randrange(10**9)
    chance, told = random.Random(seed), f"chosen by seed {seed}"
    inside: set[str] = set()
    sealed: dict[str, bytes] = {}
    for stage in STAGES:
        process = place.start("run", *words)
        _wait(process, lambda stage=stage: _at_work(place, stage.name))  # type: ignore[misc]
        _work(place, stage.name, seconds=chance.uniform(0, 0.5) * wanted[stage.name].manifest["seconds"])
        _kill(process)
        inside |= {stage.name} if _at_work(place, stage.name) else set()
        assert place.torn() == [], told
        now = _manifests(place)
        assert sealed.items() <= now.items(), f"a finished stage was made again; {told}"
        sealed = now
    made = place.make(*words)
    # A machine that has become faster since finishes a stage before its kill: one of the long ones may escape.
    assert len({"sft", "train", "evaluate"} & inside) >= 2, f"killed too late to say anything; {told}"
    assert sealed.items() <= _manifests(place).items(), told
    assert place.torn() == []
    assert not any(_at_work(place, stage.name) for stage in STAGES)
    assert _digests(made) == _digests(wanted), told
    weights = [each["train"].file("adapter/adapter_model.safetensors").read_bytes() for each in (made, wanted)]
    assert weights[0] == weights[1], told


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_adapter(
    workplace: Callable[[str], Any], words: list[str]
) -> None:
    place = workplace("work")
    process = place.start("run", *words)
    _wait(process, lambda: any(place.folder.glob("artifacts/.work/train-*/.checkpoints/step-*")))
    _kill(process)
    done = place.run("run", *words)
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint at step" in done.stderr
    trained = place.sealed()["train"]
    steps = trained.file("logs/steps.jsonl").read_text("utf-8").splitlines()
    assert len(steps) == trained.metrics["steps"] == 60
    weights = trained.file("adapter/adapter_model.safetensors").read_bytes()
    at_once = place.make(*words, "--only", "train", "--force")["train"]
    assert at_once.file("adapter/adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_writes_a_checkpoint_and_goes_on_from_it_to_the_same_policy(
    workplace: Callable[[str], Any], words: list[str], stop: signal.Signals
) -> None:
    words += ["--set", "runtime.checkpoint_every_seconds=3600", "--set", "sft.epochs=8", "--until", "sft"]
    place = workplace("work")
    process = place.start("run", *words)
    _wait(process, lambda: any(place.folder.glob("artifacts/.work/sft-*/logs/steps.jsonl")))
    process.send_signal(stop)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[stop], said
    assert "Stopped." in said
    [checkpoint] = place.folder.glob("artifacts/.work/sft-*/.checkpoints/step-*")
    done = place.run("run", *words)
    assert done.returncode == 0, done.stderr
    assert re.search("sft +resumes", done.stderr)
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"going on from the checkpoint at step {step} of 200" in done.stderr
    weights = place.sealed()["sft"].file("policy/model.safetensors").read_bytes()
    at_once = place.make(*words[:-2], "--only", "sft", "--force")["sft"]
    assert at_once.file("policy/model.safetensors").read_bytes() == weights


def _wait(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Until something has happened in a run that is still going on."""
    while not happened():
        assert process.poll() is None, f"the run ended before: {process.communicate()[1]}"
        time.sleep(0.002)


def _work(place: Any, stage: str, seconds: float) -> None:
    """Lets a stage work so long, or until it is over: an idle machine is faster than the one that `seconds` is of."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and _at_work(place, stage):
        time.sleep(0.002)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _at_work(place: Any, stage: str) -> bool:
    """Whether the stage has begun and is not sealed."""
    return any(place.folder.glob(f"*/.work/{stage}-*"))


def _manifests(place: Any) -> dict[str, bytes]:
    """They say when a stage was made, so a stage that was made again has another."""
    return {stage: (artifact.path / MANIFEST).read_bytes() for stage, artifact in place.sealed().items()}


def _digests(made: dict[str, Any]) -> dict[str, str]:
    return {stage: artifact.digest for stage, artifact in made.items()}
