import pytest

from engine.reports.headlines import HEADLINES, headline


def test_the_headline_of_evaluate_is_before_and_after_and_the_accuracy_beside_the_length_rule(seal, evaluated):
    assert headline(seal("evaluate", evaluated)) == [
        ("harmful requests refused", "2.0% → 100.0%"),
        ("normal requests answered right", "99.0% → 98.0%"),
        ("held-out pairs put right", "97.5% (by their length alone: 50.0%)"),
        ("mean margin on held-out pairs", "4.25"),
    ]


def test_a_number_that_is_missing_or_is_none_is_left_out(seal, evaluated):
    del evaluated["eval_longer_wins"], evaluated["start/normal/right"]
    assert headline(seal("evaluate", evaluated | {"eval_rewards/margins": None}))[1:] == [
        ("held-out pairs put right", "97.5%"),
    ]
    assert headline(seal("download", {"pairs": 4, "refused": 0, "rows_read": 0})) == [("pairs", "4")]


def test_the_refused_rows_are_told_as_a_share_too(seal):
    assert headline(seal("download", {"refused": 5, "rows_read": 200})) == [("rows refused", "5 (2.5%)")]


def test_a_run_that_took_the_scores_as_they_were_scored_nothing(seal):
    made = seal("reference", {"pairs": 90, "pairs_scored": 12, "pairs_reused": 78, "tokens_per_second": 500})
    assert headline(made) == [
        ("pairs scored", "12"),
        ("pairs whose scores were there", "78"),
        ("tokens a second", "500"),
    ]
    assert headline(made, reused=True) == [("pairs scored", "0"), ("pairs whose scores were there", "90")]


def test_the_length_baseline_is_the_better_of_both_rules_where_it_was_recorded(seal, evaluated):
    found = dict(headline(seal("evaluate", evaluated | {"eval_length_baseline": 0.7})))
    assert found["held-out pairs put right"] == "97.5% (by their length alone: 70.0%)"


def test_what_the_start_put_right_stands_beside_the_accuracy_of_a_model_without_a_reference(seal, evaluated):
    found = dict(headline(seal("evaluate", evaluated | {"start/eval_rewards/accuracies": 0.8})))
    assert found["held-out pairs put right"] == "97.5% (before the training: 80.0%; by their length alone: 50.0%)"


def test_the_headline_of_compare_is_the_difference_from_the_model_in_service(seal):
    name = "difference/eval_rewards/accuracies"
    recorded = {"in_service": "abc", "pairs": 143, "trained_on": 7, name: 0.021, "intervals": {name: [-0.004, 0.05]}}
    assert headline(seal("compare", recorded)) == [
        ("model in service", "abc"),
        ("held-out pairs put right, against it", "+2.1 (-0.4 to +5.0) points"),
        ("pairs compared", "143"),
        ("pairs left out: it was trained on them", "7"),
    ]


def test_without_a_model_in_service_nothing_was_compared(seal):
    assert headline(seal("compare", {"in_service": None, "pairs": 0, "trained_on": 0, "intervals": {}})) == [
        ("model in service", "none")
    ]


def test_the_headline_of_promote_is_the_verdict_and_the_rules_in_its_way(seal):
    kept = {"verdict": "keep", "rules_failed": ["over-refusal", "empty"]}
    assert headline(seal("promote", kept)) == [
        ("verdict of the gate", "not passed"),
        ("rules that are not met", "over-refusal, empty"),
    ]
    passed = headline(seal("promote", {"verdict": "promote", "rules_failed": []}))
    assert passed == [("verdict of the gate", "passed"), ("rules that are not met", "none")]


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ({"findings": 0, "stopped_at": None}, "nothing out of the ordinary"),
        ({"findings": []}, "nothing out of the ordinary"),
        ({"findings": [{"sign": "empty"}], "stopped_at": 120}, "1 sign of trouble; stopped at step 120"),
        ({"findings": 3}, "3 signs of trouble"),
    ],
)
def test_the_headline_of_train_says_what_the_monitor_saw(seal, recorded, told):
    assert headline(seal("train", recorded)) == [("seen while training", told)]


def test_a_stage_or_a_manifest_that_is_not_known_has_no_headline(seal):
    assert headline(seal("elsewhere", {"x": 1})) == []
    assert headline(seal("promote", {"x": 1})) == []
    artifact = seal("train", {"loss": 1})
    (artifact.path / "manifest.json").unlink()
    assert headline(type(artifact)("train", "key1", artifact.path)) == []


@pytest.mark.parametrize(
    "stage", ["download", "tokenize", "subsample", "sft", "reference", "train", "evaluate", "compare", "promote"]
)
def test_every_stage_has_headlines(stage):
    assert HEADLINES[stage]


@pytest.mark.parametrize("stage", ["sft", "train"])
def test_a_training_says_how_fast_it_was_and_what_memory_it_took(seal, stage):
    spent = {"tokens_per_second": 5123, "peak_memory_bytes": 3 * 2**29}
    assert headline(seal(stage, spent)) == [("tokens a second", "5,123"), ("most memory", "1.5 GiB")]
    assert headline(seal(stage, {"peak_memory_bytes": 200 * 2**20})) == [("most memory", "200 MiB")]
    assert headline(seal(stage, {"peak_memory_bytes": None})) == []
