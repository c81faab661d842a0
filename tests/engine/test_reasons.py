from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.artifact import Artifact
from engine.attempts import Attempt
from engine.processes import this_process
from engine.reasons import Change, Nearest, why_run

PAYLOAD = {
    "stage": "train",
    "version": 1,
    "config": {"beta": 0.1, "lora": {"rank": 4}},
    "inputs": {"tokenize": "aa"},
    "sources": {"files": [["a.csv", "11"]]},
}


def made(payload: dict[str, Any], *, pruned: bool = False, **manifest: Any) -> Artifact:
    artifact = Artifact("train", "k", Path("nowhere"), pruned)
    vars(artifact)["manifest"] = {"payload": payload} | manifest  # where the property keeps what it read
    return artifact


def attempt(payload: dict[str, Any]) -> Attempt:
    return Attempt("train", "a", Path("left"), payload, "2026-01-01", this_process())


def why(**changed: Any) -> str:
    return why_run(PAYLOAD | changed, [made(PAYLOAD)])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {"beta": 0.2, "lora": {"rank": 4}}}, "train.beta: 0.1 → 0.2"),
        ({"config": {"beta": 0.2, "lora": {"rank": 8}}}, "train.beta: 0.1 → 0.2; train.lora.rank: 4 → 8"),
        ({"config": {"beta": 0.1}}, "train.lora: {'rank': 4} → nothing"),
        ({"config": PAYLOAD["config"] | {"note": "x" * 99}}, f"train.note: nothing → {'x' * 59}…"),
        ({"inputs": {"tokenize": "bb"}}, "input tokenize has other content"),
        ({"inputs": {}}, "input tokenize is no longer read"),
        ({"inputs": {"tokenize": "aa", "sft": "cc"}}, "input sft is new"),
        ({"sources": {"files": [["a.csv", "22"]]}}, "files has other content"),
        ({"sources": {}}, "files is no longer named"),
        ({"version": 2}, "the code of train went from version 1 to 2"),
        ({"runtime": {"micro_batch_tokens": 8}}, "train.micro_batch_tokens: nothing → 8"),
        ({"inputs": {}, "borrowed": {"tokenize": {"words": 3}}}, "input tokenize is no longer read"),
        ({}, "its artifact is gone"),
    ],
)
def test_what_changed_is_said_in_words(changed, said):
    assert why(**changed) == said


def test_a_config_that_is_borrowed_is_told_by_the_stage_it_is_of():
    old = PAYLOAD | {"borrowed": {"reference": {"dtype": "float32", "attention": "sdpa"}}}
    new = PAYLOAD | {"borrowed": {"reference": {"dtype": "bfloat16", "attention": "sdpa"}}}
    assert why_run(new, [made(old)]) == "reference.dtype: float32 → bfloat16"


SIGMOID = {"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}
SFT = {"name": "sft", "weight": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ([SIGMOID, SFT], [SIGMOID | {"label_smoothing": 0.1}, SFT], "train.loss.0.label_smoothing: 0.0 → 0.1"),
        ([SIGMOID], [SIGMOID, SFT], "train.loss.1: nothing → {'name': 'sft', 'weight': 0.5}"),
        ([SIGMOID, SFT], [SIGMOID, SFT | {"weight": 1.0}], "train.loss.1.weight: 0.5 → 1.0"),
        ([SIGMOID, SFT], [SFT, SFT], "train.loss.0.label_smoothing: 0.0 → nothing; train.loss.0.name: sigmoid → sft; "),
        (["a"], ["b"], "train.loss: ['a'] → ['b']"),
        ("y" * 70 + "old", "y" * 70 + "new", f"train.loss: …{'y' * 15}old → …{'y' * 15}new"),
        ("y" * 70, "y" * 80, f"train.loss: …{'y' * 15} → …{'y' * 25}"),
    ],
)
def test_of_long_values_what_differs_is_in_sight(old, new, said):
    config = {"beta": 0.1, "lora": {"rank": 4}}
    then = PAYLOAD | {"config": config | {"loss": old}}
    assert why_run(PAYLOAD | {"config": config | {"loss": new}}, [made(then)]).startswith(said)


NAMES = st.text("ab", max_size=200)


@given(old=NAMES | st.lists(NAMES), new=NAMES | st.lists(NAMES))
def test_two_values_that_differ_never_look_the_same(old, new):
    assume(str(old) != str(new))
    for each in Change("config.loss", old, new).said("train").split("; "):
        before, _, after = each.partition(": ")[2].partition(" → ")
        assert before != after


def test_what_was_never_made_has_no_difference_to_tell():
    assert why_run(PAYLOAD, []) == "never made"


def test_the_most_similar_artifact_is_compared_with():
    far = PAYLOAD | {"version": 9, "config": {"beta": 9}}
    near = PAYLOAD | {"config": {"beta": 0.3, "lora": {"rank": 4}}}
    sealed = [made(far), made(near)]
    assert why_run(PAYLOAD, sealed) == "train.beta: 0.3 → 0.1"


def test_what_only_a_manifest_is_left_of_is_said_to_be():
    assert why_run(PAYLOAD, [made(PAYLOAD, pruned=True)]) == "only its manifest is kept"


def test_an_attempt_that_is_nearer_than_anything_sealed_is_told_of_with_its_place():
    far, near = PAYLOAD | {"version": 9, "inputs": {}}, PAYLOAD | {"version": 2}
    said = why_run(PAYLOAD, [made(far), attempt(near)])
    assert said.startswith("the code of train went from version 2 to 1 (an interrupted attempt")
    assert "left" in said
    assert why_run(PAYLOAD, [made(near), attempt(near)]) == "the code of train went from version 2 to 1"


def test_every_difference_is_there_and_none_is_cut():
    long = {"config": {"beta": 0.1, "lora": {"rank": 4}, "note": "x" * 500}, "sources": {"files": []}}
    found = Nearest.to(PAYLOAD | long, [made(PAYLOAD, sealed_at="2026-01-01")])
    assert [(each.name, each.old, each.new) for each in found.changes] == [
        ("config.note", None, "x" * 500),
        ("sources.files", [["a.csv", "11"]], []),
    ]
    assert (found.kind, found.made_at) == ("sealed", "2026-01-01")
    assert Nearest.to(PAYLOAD, [made(PAYLOAD, pruned=True)]).kind == "pruned"
    begun = Nearest.to(PAYLOAD, [attempt(PAYLOAD)])
    assert (begun.kind, begun.made_at) == ("attempt", "2026-01-01")
