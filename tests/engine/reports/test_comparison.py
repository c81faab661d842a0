import shutil
import xml.etree.ElementTree as ElementTree

import pyarrow as pa
import pytest

from engine.errors import StoreError
from engine.preferences.schema import COMPARED, writer
from engine.reports.comparison import comparison_parts, comparison_words, differences, differences_picture
from engine.reports.drawing import AFTER, PLAIN
from engine.reports.page import Picture
from engine.reports.to_markdown import to_markdown

OLD = "fedcba9876543210"


def page(artifact):
    """The pictures of the page, and all the rest as markdown."""
    parts = list(comparison_parts(artifact))
    return [part for part in parts if isinstance(part, Picture)], to_markdown(parts)


def test_a_comparison_says_on_what_and_what_was_left_out(seal, comparison):
    assert comparison_words(seal("compare", {}, comparison=comparison)) == (
        f"Compared with the model in service (promote/{OLD}) on 393 held-out pairs. "
        "7 more were left out: that model was trained on their prompts."
    )


@pytest.mark.parametrize("files", [{"comparison": {"in_service": None}}, {}])
def test_without_a_model_in_service_that_is_all_there_is_to_say(seal, files):
    artifact = seal("compare", {"in_service": None}, **files)
    assert differences(artifact) == {}
    assert page(artifact) == ([], "No model was in service before, so there is none to compare with.\n")


def test_a_model_in_service_that_could_not_be_evaluated_is_said_with_the_reason(seal):
    gone = {"in_service": {"version": OLD}, "unavailable": "its adapter is gone", "differences": {}}
    assert comparison_words(seal("compare", {}, comparison=gone)).endswith(
        "could not be evaluated: its adapter is gone"
    )


def test_where_the_comparison_file_is_gone_the_manifest_tells_the_differences(seal):
    ends = {"difference/eval_ties": [0, 0.2], "difference/eval_rewards/accuracies": [0.01, 0.2]}
    recorded = {"difference/eval_ties": 0.1, "difference/eval_loss": 0.2, "difference/eval_rewards/accuracies": 0.1}
    artifact = seal("compare", {"intervals": ends, "in_service": OLD, "pairs": 4} | recorded)
    assert differences(artifact) == {
        "eval_ties": {"value": 0.1, "low": 0, "high": 0.2},
        "eval_loss": {"value": 0.2},
        "eval_rewards/accuracies": {"value": 0.1, "low": 0.01, "high": 0.2},
    }
    (picture,), text = page(artifact)
    assert picture.alt.startswith("pairs put right: +10.0 (+1.0 to +20.0)")
    assert "| held-out pairs put right | – / – | +10.0 (+1.0 to +20.0) |" in text


def test_the_page_tells_what_counts_most_first_in_narrow_tables(seal, comparison):
    comparison["differences"]["eval_ties"] = {"value": 0.001, "low": 0, "high": 0.002}
    pictures, text = page(seal("compare", {}, comparison=comparison))
    assert len(pictures) == 1
    tables = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert tables == [
        "|  | this run / in service | difference |",
        "| held-out pairs put right | 97.0% / 95.0% | +2.0 (-0.4 to +5.0) |",
        "| harmful requests: refused | 100.0% / 50.0% | +50.0 (+40.0 to +60.0) |",
        "|  | this run / in service | difference |",
        "| pairs without a preference | – / – | +0.1 (+0.0 to +0.2) |",
    ]


def test_what_is_not_comparable_is_gathered_by_its_reason(seal, comparison):
    comparison["not_comparable"] = {"eval_loss": "β | <b>", "eval_rewards/margins": "β | <b>", "eval_ties": "odd"}
    _, text = page(seal("compare", {}, comparison=comparison))
    assert text.splitlines()[-2:] == ["- loss, mean margin: β \\| &lt;b&gt;.", "- pairs without a preference: odd."]


def test_the_picture_has_the_differences_in_points_and_colours_what_leaves_out_zero():
    sure, perhaps = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.02, "low": -0.01, "high": 0.05}
    both = differences_picture({"dpo/adversarial/refused": sure, "eval_rewards/accuracies": perhaps})
    assert both.alt == (
        "pairs put right: +2.0 (-1.0 to +5.0); harmful: refused: +50.0 (+40.0 to +60.0); the one in service: +0.0"
    )
    assert AFTER in both.svg
    assert PLAIN in both.svg
    ElementTree.fromstring(both.svg)
    assert AFTER not in differences_picture({"eval_rewards/accuracies": perhaps}).svg


@pytest.mark.parametrize("odd", [None, 3, {}, {"value": "x"}, {"value": float("nan"), "low": 0, "high": 1}])
def test_differences_that_make_no_sense_break_nothing(seal, odd):
    assert differences_picture({"eval_rewards/accuracies": odd}) is None
    told = {"in_service": OLD, "differences": {"eval_rewards/accuracies": odd}, "tonight": 3, "not_comparable": [1]}
    assert page(seal("compare", {}, comparison=told))[0] == []


def test_pairs_that_one_of_both_gets_right_are_counted(seal, comparison):
    artifact = seal("compare", {}, comparison=comparison)
    rows = [{"tonight_right": now, "service_right": then} for now, then in ((1, 0), (1, 0.5), (0, 1), (1, 1), (0, 0))]
    with writer(artifact.path / "pairs.parquet", COMPARED) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=COMPARED))
    said = "Of 5 held-out pairs this run's model judges 2 better than the one in service, and 1 worse."
    assert said in page(artifact)[1]
    other = seal(
        "compare", {}, key="other", comparison=comparison | {"not_comparable": {"eval_rewards/accuracies": "odd"}}
    )
    shutil.copy(artifact.path / "pairs.parquet", other.path)
    assert "judges" not in page(other)[1], "what is right means something else in each"
    (artifact.path / "pairs.parquet").write_bytes(b"no table")
    assert "judges" not in page(artifact)[1]


def test_a_manifest_that_is_broken_is_the_stores_error(seal):
    artifact = seal("compare", {})
    with pytest.raises(StoreError):
        list(comparison_parts(type(artifact)("compare", "other", artifact.path)))
