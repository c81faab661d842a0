"""The embedded default, shrunk: a learning rate far too high is seen, and stopped; the normal one shows nothing."""

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # four trainings

# Large enough that the policy answers before it is trained on preferences.
SMALLER = [
    "--profile", "demo", "--until", "train",
    "--set", "subsample.pairs=800", "--set", "sft.embedded_examples=4000", "--set", "train.epochs=3",
    "--set", "runtime.threads=1",
]  # fmt: skip
FAR_TOO_HIGH = ["--set", "train.learning_rate=0.03"]


def seen(artifact):
    return {finding["sign"]: finding for finding in artifact.handed_down["monitor"]["findings"]}


def moved(artifact):
    from safetensors.torch import load_file

    weights = load_file(artifact.file("adapter/adapter_model.safetensors"))
    return any(value.any() for name, value in weights.items() if "lora_B" in name)


def test_a_learning_rate_far_too_high_is_named_and_stopped_and_the_normal_run_shows_nothing(workplace):
    place = workplace()
    normal = place.make(*SMALLER)["train"]
    assert normal.handed_down["monitor"] == {"stopped_at": None, "kept_step": None, "findings": []}

    said = place.run("run", "--json", *SMALLER, *FAR_TOO_HIGH)
    assert said.returncode == 0, said.stderr
    assert "the learning rate is too high" in said.stderr
    assert "Divide train.learning_rate by three to ten." in said.stderr
    warned = place.make(*SMALLER, *FAR_TOO_HIGH)["train"]
    signs = seen(warned)
    assert "displacement" in signs
    assert {"empty answers", "looping answers"} & set(signs)
    assert warned.handed_down["monitor"]["stopped_at"] is None
    assert warned.metrics["steps"] == normal.metrics["steps"]

    stops = [*SMALLER, *FAR_TOO_HIGH, "--set", "train.monitor.action=stop"]
    stopped = place.make(*stops)["train"]
    told = stopped.handed_down["monitor"]
    assert told["kept_step"] < told["stopped_at"] < normal.metrics["steps"]
    assert seen(stopped).items() <= signs.items()
    assert not moved(stopped) or told["kept_step"]
    again = place.run("run", "--json", *stops)
    assert [each["action"] for each in json.loads(again.stdout) if each["stage"] == "train"] == ["reuse"]
