import xml.etree.ElementTree as ElementTree

import pyarrow as pa
import pytest

from engine.errors import StoreError
from engine.preferences.schema import EVALUATED, GENERATIONS, TOKENS, writer
from engine.reports.drawing import AFTER, CHOSEN, REJECTED
from engine.reports.evaluation import (
    calibration_picture,
    calibration_table,
    contents,
    evaluation_parts,
    pairs_table,
    slices_picture,
    slices_table,
)
from engine.reports.page import Answers, Picture

SLICE = {
    "slice": "length",
    "value": "shortest third | up to 41",
    "pairs": 31,
    "metrics": {"eval_rewards/accuracies": 0.9, "eval_rewards/margins": 1.5},
    "intervals": {"eval_rewards/accuracies": [0.75, 0.97]},
}
BIN = {"low": 0.5, "high": 0.6, "pairs": 12, "confidence": 0.55, "accuracy": 0.583}


def judged(pair: str, margin: float) -> dict:
    """A row whose chosen answer of 4 tokens became likelier by twice the margin and whose rejected one did not."""
    logps = {"policy_chosen_logps": -10 + 2 * margin, "ref_chosen_logps": -10.0}
    logps |= {"policy_rejected_logps": -5.0, "ref_rejected_logps": -5.0}
    tokens = {"chosen_scored_tokens": 4, "rejected_scored_tokens": 0}
    rewards = {"chosen_reward": margin, "rejected_reward": 0.0, "margin": margin}
    return {"pair_id": pair, "source": "s", "chosen_refuses": False} | logps | tokens | rewards


def write(path, schema, rows):
    with writer(path, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema))


@pytest.fixture
def whole(seal, evaluated):
    """An artifact of evaluate with all that its page is made of."""
    drawn = seal("subsample", {})
    write(drawn.path / "eval.parquet", TOKENS, [{"pair_id": "p0", "prompt": "a", "chosen": "b", "rejected": "c"}])
    told = {"slices": [SLICE], "calibration": [BIN], "identity": {"beta": 0.25}}
    made = seal("evaluate", evaluated, reads=[drawn], metrics=told)
    write(made.path / "pairs.parquet", EVALUATED, [judged(f"p{n}", float(n - 1)) for n in range(9)])
    return made


def test_the_numbers_over_pairs_have_words_and_intervals(evaluated):
    assert pairs_table(evaluated).splitlines()[2:4] == [
        "| held-out pairs put right | 97.5% (95.5 to 98.8) |",
        "| put right by always taking the longer answer | 50.0% |",
    ]
    assert pairs_table({"loss": 1}) == ""


def test_a_slice_has_a_row_in_two_narrow_tables():
    tables = slices_table([SLICE]).split("\n\n")
    assert [each.splitlines()[2] for each in tables] == [
        r"| shortest \| up to 41 (31) | 90.0% (75.0 to 97.0) | – |",
        r"| shortest \| up to 41 (31) | 1.5 | – |",
    ]


def test_confidence_stands_beside_how_often_it_was_right():
    assert calibration_table([BIN]).splitlines()[2] == "| 50.0% to 60.0% | 12 | 55.0% | 58.3% |"


@pytest.mark.parametrize("broken", [None, "text", 3, [], [None, "x", 1], {"a": 1}])
def test_slices_and_bins_that_make_no_sense_have_neither_table_nor_picture(broken):
    assert slices_table(broken) == calibration_table(broken) == ""
    assert slices_picture({}, broken) is calibration_picture({}, broken) is None


def test_a_slice_or_bin_that_lacks_parts_breaks_nothing():
    assert "x" * 39 + "… (31)" in slices_table([SLICE | {"slice": "source", "value": "x" * 99}])
    assert slices_table([{"slice": "odd", "metrics": 3, "intervals": 4, "pairs": "<b>"}]).count("–") == 6
    assert "<b>" not in slices_table([{"pairs": "<b>"}])
    assert calibration_table([{"pairs": 3}]) == ""
    assert "None" not in calibration_table([{"low": 0.5, "high": 1.0}])
    assert calibration_picture({}, [{"pairs": 0, "confidence": 0.5, "accuracy": 1}, {"pairs": 3}]) is None


def test_slices_by_length_go_from_the_shortest_to_the_longest_below_all_others():
    values = ["longest third, over 43 tokens", "shortest third, up to 41 tokens", "middle third, up to 43 tokens"]
    slices = [SLICE | {"value": value} for value in values]
    slices.append(SLICE | {"slice": "chosen_refuses", "value": "refuses"})
    slices.append(SLICE | {"slice": "source", "value": "<script>|$x$"})
    picture = slices_picture({"eval_rewards/accuracies": 0.5, "eval_length_baseline": 0.25}, slices)
    names = [each.strip().partition(": ")[0] for each in picture.alt.replace("chosen: a", "chosen a").split(";")]
    assert names == [
        "all pairs",
        "chosen a refusal",
        "<script>|$x$",
        "shortest, up to 41 tokens",
        "middle, up to 43 tokens",
        "longest, over 43 tokens",
        "all pairs",
        "by length alone",
    ]
    assert picture.alt.endswith("all pairs: 50.0%; by length alone: 25.0%")
    assert "<script>|$x$" in {text.strip() for text in ElementTree.fromstring(picture.svg).itertext()}


def test_the_picture_of_calibration_says_how_large_the_gap_is():
    picture = calibration_picture({"eval_calibration_error": 0.033}, [BIN])
    assert picture.title == "As often right as it is sure? (mean gap 3.3%)"
    assert picture.alt == "sure 55.0%, right 58.3%, 12 pairs"


def test_the_page_of_evaluate_has_pictures_then_the_worst_pairs_then_tables(whole, evaluated):
    parts = list(evaluation_parts(whole))
    pictures = [part for part in parts if isinstance(part, Picture)]
    assert [each.title for each in pictures] == [
        "Margins: reward of chosen less rejected (β = 0.25)",
        "Rewards of chosen and rejected answers (β = 0.25)",
        "Change of log-probability by the training",
        "Held-out pairs put right",
        "As often right as it is sure?",
        "What is answered, before and after",
    ]
    assert isinstance(parts[6], Answers)
    assert parts[6].exchanges[0].prompt == "a"
    assert [part.splitlines()[0] for part in parts[7:]] == [
        "**On the held-out pairs**",
        "**Held-out pairs by slice**",
        "**Is it as often right as it is sure?**",
        "**What the models answer**",
    ]


def test_the_pictures_show_margins_rewards_and_changes_per_token(whole):
    margins, rewards, likelier = list(evaluation_parts(whole))[:3]
    assert "-0.6, 3, 6.6; no preference: 0" in margins.alt
    for picture, shown in ((rewards, "-0.6, 3, 6.6"), (likelier, "-0.3, 1.5, 3.3")):
        chosen, _, rejected = picture.alt.partition("rejected: 9;")
        assert shown in chosen
        assert "0, 0, 0" in rejected


def test_chosen_and_rejected_are_drawn_in_the_colours_that_the_legend_of_all_pages_has(whole, monkeypatch):
    drawn = []
    monkeypatch.setattr("engine.reports.evaluation.histogram", lambda title, series, **_: drawn.append(series))
    list(evaluation_parts(whole))
    (margins, *sides) = drawn
    assert [(each.name, each.colour) for each in margins] == [("pairs", AFTER)]
    for series in sides:
        assert [(each.name, each.colour) for each in series] == [("chosen", CHOSEN), ("rejected", REJECTED)]


def test_numbers_that_are_none_or_not_finite_are_no_part_of_a_picture(seal):
    artifact = seal("evaluate", {})
    odd = judged("q", float("inf")) | {
        "ref_chosen_logps": float("inf"),
        "rejected_reward": None,
        "margin": float("nan"),
    }
    write(artifact.path / "pairs.parquet", EVALUATED, [judged("p", 1.0), odd])
    margins, rewards, likelier = evaluation_parts(artifact)
    assert margins.alt.startswith("pairs: 1;")
    assert "rejected: 1;" in rewards.alt
    assert "chosen: 1;" in likelier.alt


def test_rates_by_set_have_a_part_of_their_own(seal, evaluated):
    found = "\n".join(evaluation_parts(seal("evaluate", {"dpo/xstest:normal/refused": 0.25})))
    assert "**By set of prompts**\n\n*normal, of xstest*" in found


def test_an_artifact_of_an_earlier_version_has_the_parts_it_has(seal):
    old = seal("evaluate", {"eval_loss": 0.5}, metrics={"eval_loss": 0.1})
    write(old.path / "pairs.parquet", GENERATIONS, [])
    (only,) = evaluation_parts(old)
    assert only.startswith("**On the held-out pairs**")
    assert list(evaluation_parts(seal("evaluate", {}))) == []


@pytest.mark.parametrize("content", [b"", b"no table"])
def test_a_table_that_is_empty_or_broken_only_costs_its_pictures(whole, content):
    (whole.path / "pairs.parquet").write_bytes(content)
    assert [type(part) for part in evaluation_parts(whole)] == [Picture] * 3 + [str] * 4
    write(whole.path / "pairs.parquet", EVALUATED, [])
    assert [type(part) for part in evaluation_parts(whole)] == [Picture] * 3 + [str] * 4


def test_a_manifest_that_is_broken_is_the_stores_error(seal):
    artifact = seal("evaluate", {})
    with pytest.raises(StoreError):
        list(evaluation_parts(type(artifact)("evaluate", "other", artifact.path)))


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\ud83d"])
def test_contents_that_are_no_object_are_none(seal, text):
    artifact = seal("evaluate", {}, metrics={})
    (artifact.path / "metrics.json").write_text(text, "utf-8", "surrogatepass")
    assert contents(artifact, "metrics.json") == {}
    assert contents(artifact, "gone.json") == {}
