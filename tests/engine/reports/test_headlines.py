import pytest

from engine.reports.headlines import HEADLINES, headline


def test_the_headline_of_evaluate_is_before_and_after_and_the_accuracy_beside_the_length_rule(seal, evaluated):
    assert headline(seal("evaluate", evaluated)) == [
        ("harmful requests refused", "2.0% → 100.0%"),
        ("normal requests answered right", "99.0% → 98.0%"),
        ("held-out pairs put right", "97.5% (always taking the longer answer: 50.0%)"),
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


def test_a_stage_or_a_manifest_that_is_not_known_has_no_headline(seal):
    assert headline(seal("promote", {"x": 1})) == []
    artifact = seal("train", {"loss": 1})
    (artifact.path / "manifest.json").unlink()
    assert headline(type(artifact)("train", "key1", artifact.path)) == []


@pytest.mark.parametrize("stage", ["download", "tokenize", "subsample", "sft", "reference", "train", "evaluate"])
def test_every_stage_has_headlines(stage):
    assert HEADLINES[stage]
