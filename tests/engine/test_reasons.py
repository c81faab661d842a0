from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.reasons import why_run

PAYLOAD = {
    "stage": "train",
    "version": 1,
    "config": {"beta": 0.1, "lora": {"rank": 4}},
    "inputs": {"tokenize": "aa"},
    "sources": {"files": [["a.csv", "11"]]},
}


@dataclass
class Sealed:
    manifest: dict[str, Any] = field(default_factory=dict)


def why(**changed: Any) -> str:
    return why_run("train", PAYLOAD | changed, [Sealed({"payload": PAYLOAD})])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {"beta": 0.2, "lora": {"rank": 4}}}, "train.beta: 0.1 → 0.2"),
        ({"config": {"beta": 0.2, "lora": {"rank": 8}}}, "train.beta: 0.1 → 0.2; train.lora.rank: 4 → 8"),
        ({"config": {"beta": 0.1}}, "train.lora: {'rank': 4} → nothing"),
        ({"config": PAYLOAD["config"] | {"note": "x" * 99}}, f"train.note: nothing → {'x' * 59}…"),
        ({"inputs": {"tokenize": "bb"}}, "input tokenize has other content"),
        ({"inputs": {}}, "input tokenize is gone"),
        ({"inputs": {"tokenize": "aa", "sft": "cc"}}, "input sft is new"),
        ({"sources": {"files": [["a.csv", "22"]]}}, "files has other content"),
        ({"version": 2}, "the code of train went from version 1 to 2"),
        ({"runtime": {"micro_batch_tokens": 8}}, "train.micro_batch_tokens: nothing → 8"),
        ({}, "its artifact is gone"),
    ],
)
def test_what_changed_is_said_in_words(changed, said):
    assert why(**changed) == said


def test_what_was_never_made_has_no_difference_to_tell():
    assert why_run("train", PAYLOAD, []) == "never made"


def test_the_most_similar_artifact_is_compared_with():
    far = PAYLOAD | {"version": 9, "config": {"beta": 9}}
    near = PAYLOAD | {"config": {"beta": 0.3, "lora": {"rank": 4}}}
    sealed = [Sealed({"payload": far}), Sealed({"payload": near})]
    assert why_run("train", PAYLOAD, sealed) == "train.beta: 0.3 → 0.1"
