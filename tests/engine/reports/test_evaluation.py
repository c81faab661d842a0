import pytest

from engine.reports.evaluation import calibration_table, contents, evaluation_sections, pairs_table, slices_table

SLICE = {
    "slice": "length",
    "value": "shortest | third",
    "pairs": 31,
    "metrics": {"eval_rewards/accuracies": 0.9, "eval_rewards/margins": 1.5},
    "intervals": {"eval_rewards/accuracies": [0.75, 0.97]},
}
BIN = {"low": 0.5, "high": 0.6, "pairs": 12, "confidence": 0.55, "accuracy": 0.583}


def test_the_numbers_over_pairs_have_words_intervals_and_their_recorded_name(evaluated):
    assert pairs_table(evaluated).splitlines()[2:4] == [
        "| held-out pairs put right | 97.5% (95.5 to 98.8) | `eval_rewards/accuracies` |",
        "| put right by always taking the longer answer | 50.0% | `eval_longer_wins` |",
    ]
    assert pairs_table({"loss": 1}) == ""


def test_a_slice_has_a_row_with_what_is_known_of_it():
    assert slices_table([SLICE]).splitlines()[2] == (
        r"| length of the answers | shortest \| third | 31 | 90.0% (75.0 to 97.0) | – | 1.5 | – |"
    )


def test_confidence_stands_beside_how_often_it_was_right():
    assert calibration_table([BIN]).splitlines()[2] == "| 50.0% to 60.0% | 12 | 55.0% | 58.3% |"


@pytest.mark.parametrize("broken", [None, "text", 3, [], [None, "x", 1], {"a": 1}])
def test_slices_and_bins_that_make_no_sense_have_no_table(broken):
    assert slices_table(broken) == ""
    assert calibration_table(broken) == ""


def test_a_slice_or_bin_that_lacks_parts_breaks_nothing():
    assert slices_table([{"slice": "odd", "metrics": 3, "intervals": 4}]).count("–") == 6
    assert calibration_table([{"pairs": 3}]) == ""
    assert "None" not in calibration_table([{"low": 0.5, "high": 1.0}])


def test_the_page_of_evaluate_has_every_part_that_there_are_numbers_for(seal, evaluated):
    evaluated["dpo/xstest:normal/refused"] = 0.25
    found = "\n".join(
        evaluation_sections(seal("evaluate", evaluated, metrics={"slices": [SLICE], "calibration": [BIN]}))
    )
    titles = [line for line in found.splitlines() if line.startswith("**")]
    assert titles == [
        "**On the held-out pairs**",
        "**What the models answer**",
        "**By set of prompts**",
        "**Held-out pairs by slice**",
        "**Is it as often right as it is sure?**",
    ]
    assert "| normal, of xstest | refused | – | 25.0% |" in found


def test_an_artifact_of_an_earlier_version_has_the_parts_it_has(seal):
    (only,) = evaluation_sections(seal("evaluate", {"eval_rewards/accuracies": 0.5}, metrics={"eval_loss": 0.1}))
    assert only.startswith("**On the held-out pairs**")
    assert list(evaluation_sections(seal("evaluate", {}))) == []


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\ud83d"])
def test_contents_that_are_no_object_are_none(seal, text):
    artifact = seal("evaluate", {}, metrics={})
    (artifact.path / "metrics.json").write_text(text, "utf-8", "surrogatepass")
    assert contents(artifact, "metrics.json") == {}
    assert contents(artifact, "gone.json") == {}
