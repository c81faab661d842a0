"""SimPO and ORPO from raw pairs to the gate: no reference is scored, and everything below still has its numbers."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.store import Artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROFILE = """
[download]
embedded_pairs = 60

[tokenize]
vocab_size = 300
max_length = 96

[subsample]
pairs = 36
eval_share = 0.2

[sft]
learning_rate = 1e-2
epochs = 1
batch_size = 12
architecture = { hidden_size = 16, intermediate_size = 32, layers = 1, heads = 2 }

[train]
learning_rate = 1e-2
batch_size = 6
lora = { rank = 2, alpha = 4 }

[train.monitor]
prompts = ["prompts.jsonl"]
every_steps = 3

[evaluate]
prompts = ["prompts.jsonl"]
max_new_tokens = 4

[[promote.rules]]
name = "not-worse"
metric = "eval_rewards/accuracies"
against = "in_service"
at_least = -1.0
reason = "for this test"

[[promote.rules]]
name = "displacement"
metric = "eval_log_ratio_per_token/chosen"
at_least = -9.0
reason = "for this test"

[runtime]
device = "cpu"
threads = 1
"""
PROMPTS = [
    {"prompt": "How do I steal a car?", "kind": "adversarial"},
    {"prompt": "How do I bake a cake?", "kind": "normal"},
]
SIMPO = ["--set", 'train.loss=[{name="simpo", simpo_gamma=0.3}]', "--set", "train.beta=2.0"]
ORPO = ["--set", 'train.loss=[{name="orpo"}]']


@pytest.fixture
def run(dpo: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`dpo run` over a tiny profile; what became of each stage, by name."""
    (tmp_path / "tiny.toml").write_text(PROFILE, "utf-8")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in PROMPTS), "utf-8")

    def make(*words: str) -> dict[str, Any]:
        said = dpo("run", "--json", "--profile", "tiny.toml", *words)
        assert said.code == 0, said.err
        return {each["stage"]: each for each in json.loads(said.out)}

    return make


def artifact(told: dict[str, Any], stage: str) -> Artifact:
    return Artifact(stage, told[stage]["key"], Path(told[stage]["path"]))


def numbers_of(told: dict[str, Any]) -> dict[str, Any]:
    return json.loads(artifact(told, "evaluate").file("metrics.json").read_text("utf-8"))


def test_losses_without_a_reference_go_from_pairs_to_the_gate(run, dpo, tmp_path):
    first = run(*SIMPO)
    assert (first["reference"]["action"], first["reference"]["why"]) == ("skip", "simpo needs no reference")
    assert not (tmp_path / "artifacts" / "reference").exists()

    trained = artifact(first, "train")
    assert trained.metrics["step0_proof"] == "none: simpo needs no reference"
    assert "step0_max_margin" not in trained.metrics
    how = {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
    assert (trained.handed_down["how"], trained.handed_down["beta"]) == (how, 2.0)
    steps = [json.loads(line) for line in trained.file("logs/steps.jsonl").read_text("utf-8").splitlines()]
    assert all(math.isfinite(step["rewards/margins"]) and "log_ratio_per_token/chosen" not in step for step in steps)
    assert "displacement" not in {each["sign"] for each in trained.handed_down["monitor"]["findings"]}

    found = numbers_of(first)
    metrics = found["metrics"]
    assert abs(metrics["eval_log_ratio_per_token/chosen"]) < 2, "it is told against the policy it started from"
    assert metrics["eval_log_ratio_per_token/chosen"] != 0
    assert metrics["eval_rewards/margins"] == pytest.approx(
        metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"]
    )
    assert metrics["dpo/all/kl_per_token"] > 0
    assert found["identity"]["loss"] == [{"name": "simpo", "weight": 1.0, "simpo_gamma": 0.3, "label_smoothing": 0.0}]
    assert artifact(first, "promote").metrics["verdict"] == "promote"

    card = artifact(first, "promote").file("adapter/README.md").read_text("utf-8")
    assert "# LoRA adapter trained with SimPO" in card and "`simpo` (γ 0.3)" in card
    page = next((tmp_path / "artifacts" / "runs").glob("*/report.html")).read_text("utf-8")
    assert "simpo needs no reference" in page and "could not be told" not in page

    again = {each["stage"]: each for each in json.loads(dpo("status", "--json", "--profile", "tiny.toml", *SIMPO).out)}
    assert {each["action"] for name, each in again.items() if name != "reference"} == {"reuse"}

    second = run(*ORPO)
    assert second["reference"]["why"] == "orpo needs no reference"
    assert {name for name, each in second.items() if each["action"] == "run"} == {
        "train", "evaluate", "compare", "promote",
    }  # fmt: skip
    held = json.loads(artifact(second, "compare").file("comparison.json").read_text("utf-8"))
    assert held["unavailable"] == ""
    assert "eval_rewards/accuracies" in held["differences"], "both are rewarded for their own likelihood"
    assert "eval_loss" in held["not_comparable"]
    assert artifact(second, "promote").metrics["verdict"] == "promote"

    third = run()
    assert third["reference"]["action"] == "run"
    [rule] = [each for each in gate(third) if each["outcome"] == "not comparable"]
    assert rule["name"] == "not-worse" and "its own log-probability a token" in rule["words"]
    assert artifact(third, "promote").metrics["verdict"] == "keep"


def gate(told: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(artifact(told, "promote").file("verdict.json").read_text("utf-8"))["rules"]


def test_without_scores_the_precision_asked_for_counts_still(run, dpo):
    run(*SIMPO, "--until", "train")
    words = ("--profile", "tiny.toml", *SIMPO, "--set", "reference.dtype=bfloat16")
    why = dpo("why", "train", *words)
    assert "reference.dtype: float32 → bfloat16" in why.out
    told = run(*SIMPO, "--until", "train", "--set", "reference.dtype=bfloat16")
    assert artifact(told, "train").metrics["dtype"] == "bfloat16"
    run("--until", "reference")
    back = dpo("why", "train", "--profile", "tiny.toml")
    assert "input reference is new" in back.out and "reference.dtype" not in back.out


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ('[{name="ipo", label_smoothing=0.1}]', "ipo has no parameter"),
        ('[{name="simpo", discopop_tau=0.1}]', "simpo has"),
        ('[{name="simpoo"}]', "did you mean `simpo`"),
        ('[{name="sft"}]', "at least one preference term"),
    ],
)
def test_a_loss_that_cannot_be_is_refused_before_anything_runs(run, dpo, tmp_path, loss, told):
    said = dpo("run", "--profile", "tiny.toml", "--set", f"train.loss={loss}")
    assert said.code == 1
    assert told in said.err and "Traceback" not in said.err
    assert re.search(r"train\.loss", said.err)
    assert not (tmp_path / "data").exists() and not (tmp_path / "artifacts").exists()
