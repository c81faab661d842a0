import json
from dataclasses import replace

import pyarrow as pa
import pytest

from engine.errors import StoreError
from engine.preferences.schema import GENERATIONS, TOKENS, writer
from engine.promotion.card_facts import Facts, Sample, told_of
from engine.sources import ModelSource

TOLD = {"candidate": "961346c2c17f9487", "given_policy": {}}
EVALUATED = {"metrics": {"eval_pairs": 3, "note": "x"}, "intervals": {"eval_pairs": [1, 4]}}


@pytest.fixture
def inputs(seal):
    monitor = {"stopped_at": None, "findings": []}
    files = {
        "tokenize": {"handed_down.json": '{"template": "plain"}'},
        "subsample": {"train.parquet": "no table"},
        "sft": {"policy/weights": "w"},
        "train": {
            "handed_down.json": json.dumps({"beta": 0.1, "loss": [], "how": {"dtype": "float32"}, "monitor": monitor}),
            "adapter/adapter_config.json": '{"r": 4}',
        },
        "evaluate": {"metrics.json": "{}"},
    }
    return {stage: seal(stage, f"{stage} here", each) for stage, each in files.items()}


def read(inputs, model=None, **told):
    return Facts.read(inputs, model or ModelSource(), TOLD | told, EVALUATED, {"verdict": "keep", "rules": []})


def put(artifact, name, schema, rows):
    with writer(artifact.path / name, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema))


def test_what_the_stages_handed_on_is_read(inputs):
    facts = read(inputs)
    assert (facts.candidate, facts.template, facts.made, facts.commit) == ("961346c2c17f9487", "plain", True, "")
    assert facts.policy == f"artifacts/sft/{inputs['sft'].key}/policy"
    assert (facts.trained["beta"], facts.how, facts.lora) == (0.1, {"dtype": "float32"}, {"r": 4})
    assert facts.measured == {"eval_pairs": 3, "note": "x", "intervals": {"eval_pairs": [1, 4]}}
    assert (facts.rate("eval_pairs"), facts.rate("note"), facts.rate("nothing")) == (3.0, None, None)


def test_pairs_are_counted_by_source_the_largest_first(inputs):
    put(inputs["subsample"], "train.parquet", TOKENS, [{"source": name} for name in ["a", "b", "b", "b"]])
    put(inputs["subsample"], "eval.parquet", TOKENS, [{"source": name} for name in ["a", "c", "a", "a", "a"]])
    assert list(read(inputs).sources.items()) == [("a", (1, 4)), ("b", (3, 0)), ("c", (0, 1))]


def test_the_first_three_of_each_kind_are_samples_with_what_was_said_before_and_after(inputs):
    rows = [
        {"policy": policy, "prompt": f"{kind} {place}", "kind": kind, "generation": f"{policy} {place}"}
        for policy in ("start", "dpo")
        for kind in ("normal", "adversarial")
        for place in range(5)
    ]
    put(inputs["evaluate"], "generations.parquet", GENERATIONS, rows[:-5])
    samples = read(inputs).samples
    assert [(each.kind, each.prompt) for each in samples] == [
        (kind, f"{kind} {place}") for kind in ("normal", "adversarial") for place in range(3)
    ]
    assert samples[0] == Sample("normal", "normal 0", "start 0", "dpo 0")
    assert samples[3].after is None


def test_a_policy_that_was_given_has_the_commit_it_was_resolved_to_and_a_folder_none(inputs):
    del inputs["sft"]
    given = ModelSource(policy="org/policy")
    facts = read(inputs, given, given_policy={"policy": "org/policy@abc"})
    assert (facts.policy, facts.made, facts.commit) == ("org/policy", False, "abc")
    assert read(inputs, given, given_policy={"policy": [["weights", "hash"]]}).commit == ""


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"step": 1}', "null\n"])
def test_what_a_card_can_do_without_is_left_out_where_it_cannot_be_read(inputs, damage):
    for stage, name in (
        ("train", "adapter/adapter_config.json"),
        ("tokenize", "handed_down.json"),
    ):
        (inputs[stage].path / name).write_text(damage, "utf-8")
    facts = read(inputs)
    assert (facts.sources, facts.samples, facts.template) == ({}, (), "")


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        ([], []),
        ([[]], []),
        ([["shipped", "x"], [], [["a.jsonl", "y"], ["b.jsonl", "z"]]], ["shipped", "a.jsonl", "b.jsonl"]),
    ],
)
def test_prompts_are_known_by_their_sets_and_files_and_an_empty_set_by_nothing(inputs, prompts, names):
    facts = replace(read(inputs), evaluated=EVALUATED | {"identity": {"prompts": prompts}})
    assert facts.prompt_sets == names


def test_what_a_part_tells_is_passed_on_and_what_it_cannot_tell_is_said(inputs, caplog):
    facts = read(inputs)
    assert told_of(facts, "it", lambda facts: facts.candidate) == "961346c2c17f9487"
    assert told_of(facts, "it", lambda facts: "") is None
    assert caplog.text == ""
    assert told_of(facts, "it", lambda facts: 1 / 0) is None
    assert "the model card leaves out it: ZeroDivisionError: division by zero" in caplog.text


def test_without_what_a_model_is_there_is_no_card(inputs):
    (inputs["train"].path / "handed_down.json").unlink()
    with pytest.raises(StoreError):
        read(inputs)
