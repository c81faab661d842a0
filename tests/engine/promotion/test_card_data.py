import math

import pytest
import yaml

from engine.promotion.card_data import is_on_the_hub, metadata

ACCURACY = "eval_rewards/accuracies"


def results(facts):
    [model] = yaml.safe_load(metadata(facts))["model-index"]
    return {each["metrics"][0]["name"]: each for each in model["results"]}


@pytest.mark.parametrize("bounds", [None, [], [None, None], [math.nan, 0.9], [0.7, "x"], {"low": 1}, 3])
def test_a_result_whose_interval_cannot_be_told_stands_there_without_one(facts, bounds, caplog):
    evaluated = {"metrics": {ACCURACY: 0.8}, "intervals": {ACCURACY: bounds}, "identity": {}}
    [metric] = results(facts(evaluated=evaluated))["held-out pairs put right"]["metrics"]
    assert metric["value"] == 0.8
    assert "args" not in metric
    assert caplog.text == ""


def test_a_result_has_its_interval(facts):
    assert results(facts())["held-out pairs put right"]["metrics"][0]["args"] == {"interval_95": [0.7, 0.9]}


def test_what_cannot_be_told_is_left_out_with_a_word_and_the_rest_stays(facts, caplog):
    broken = facts(evaluated={"metrics": {ACCURACY: 0.8}, "intervals": None, "identity": {}})
    read = yaml.safe_load(metadata(broken))
    assert "model-index" not in read
    assert (read["library_name"], read["datasets"]) == ("peft", ["org/pairs"])
    assert "the model card leaves out the results: AttributeError" in caplog.text
    assert metadata(broken) == metadata(broken)


def test_a_repository_is_on_the_hub_and_a_folder_of_that_name_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_on_the_hub("org/model")
    assert not is_on_the_hub("model")
    assert not is_on_the_hub(str(tmp_path))
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not is_on_the_hub("org/model")
