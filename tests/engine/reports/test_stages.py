import pytest

from engine.reports import stage_report
from engine.reports.page import Answers, Picture
from engine.reports.stages import stage_parts
from engine.stage import Decision
from engine.store import Artifact

UNMET = {
    "name": "over-refusal",
    "outcome": "failed",
    "words": "refuses 62.0% of normal requests",
    "reason": "they are right",
}


def test_a_page_begins_with_what_became_of_the_stage_and_ends_with_where_it_lies(seal):
    artifact = seal("train", {"loss": 0.25, "rewards/accuracies": 0.975, "grad|norm": 1.5, "beta": 0.1})
    page = stage_report(artifact, Decision("train", "run", "train.beta: 0.1 → 0.2", "key1", artifact.path, 75.0))
    assert page.startswith("## train\n\nMade: train.beta: 0.1 → 0.2.\n")
    assert "| pairs put right | 97.5% |" in page
    assert page.index("pairs put right") < page.index("All it recorded")
    assert "| `grad\\|norm` | 1.5 |" in page
    assert f"| folder | `{artifact.path}` |" in page
    assert "| took | 1 min 15 s |" in page
    assert "| size | 2,048 bytes in 1 file |" in page


def test_the_page_of_evaluate_has_both_policies_and_does_not_repeat_their_rates(seal, evaluated):
    page = stage_report(seal("evaluate", evaluated), Decision("evaluate", "reuse", "nothing it depends on changed"))
    assert "Reused: nothing" in page
    assert page.index("**Did it work?**") < page.index("*Harmful requests*")
    assert "| refused | 2.0% | 100.0% (98.1 to 100.0) |" in page
    assert "start/adversarial" not in page
    assert "| loss | 0.2 |" in page
    assert "eval_loss" not in page
    assert "**intervals**" not in page
    assert "gate" not in page


def test_the_page_of_promote_begins_with_the_answer_and_has_every_rule(gated):
    artifact = gated("keep", [UNMET])["promote"]
    page = stage_report(artifact, Decision("promote", "run", "never made"))
    assert "| harmful requests refused | 2.0% | 100.0% (98.1 to 100.0) |" in page
    assert "| harmful requests refused | +50.0 (+40.0 to +60.0) |" in page
    places = [
        page.index(text) for text in ("**Did it work?**", "| verdict of the gate | not passed |", "- **failed** ·")
    ]
    assert places == sorted(places)
    assert "`over-refusal`: refuses 62.0% of normal requests." in page
    assert "*Why: they are right.*" in page


def test_the_page_of_compare_does_not_repeat_the_differences(seal, comparison):
    recorded = {
        "in_service": "old",
        "unavailable": "",
        "difference/eval_ties": 0.1,
        "intervals": {"difference/x": [0, 1]},
    }
    page = stage_report(seal("compare", recorded, comparison=comparison), Decision("compare", "run", "never made"))
    assert "| held-out pairs put right | 97.0% / 95.0% | +2.0 (-0.4 to +5.0) |" in page
    assert "difference/" not in page
    assert "unavailable" not in page


def test_the_page_of_train_tells_what_the_monitor_found(seal):
    finding = {"sign": "empty", "step": 40, "words": "every answer is empty"}
    handed = {"monitor": {"stopped_at": 40, "kept_step": 20, "findings": [finding]}}
    artifact = seal("train", {"findings": [finding], "stopped_at": 40}, handed_down=handed)
    page = stage_report(artifact, Decision("train", "run", "never made"))
    assert "The training was stopped at step 40." in page
    assert page.count("every answer is empty") == 1


def test_a_training_without_findings_says_so_once(seal):
    artifact = seal("train", {"findings": [], "stopped_at": None}, handed_down={"monitor": {"findings": []}})
    page = stage_report(artifact, Decision("train", "run", "never made"))
    assert "| seen while training | nothing out of the ordinary |" in page
    assert "`findings`" not in page


def test_what_a_stage_tells_in_pictures_and_words_stands_between_its_numbers_and_its_place(seal):
    metrics = {"rows_read": 13, "pairs": 10, "refused": 3, "refused_by_reason": {"null_field": 2, "a|b": 1}}
    parts = stage_parts(seal("download", metrics), Decision("download", "run", "never made"))
    picture = next(place for place, part in enumerate(parts) if isinstance(part, Picture))
    assert "null field: 2" in parts[picture].alt
    told = [place for place, part in enumerate(parts) if isinstance(part, str) and "All it recorded" in part]
    assert 2 < picture < told[0]
    assert "refused_by_reason" not in parts[told[0]]


def test_the_page_of_evaluate_tells_some_answers_where_they_are_asked_for(seal, evaluated):
    said = {"prompt": "how?", "kind": "adversarial", "prompt_set": "s", "tokens": 3, "ended": True, "refused": True}
    rows = [said | {"policy": policy, "generation": f"{policy} says no"} for policy in ("start", "dpo")]
    artifact = seal("evaluate", evaluated, rows)
    decision = Decision("evaluate", "run", "never made")
    told = [part for part in stage_parts(artifact, decision, examples=1) if isinstance(part, Answers)]
    assert [each.text for each in told[-1].exchanges[0].answers] == ["start says no", "dpo says no"]
    assert not any(isinstance(part, Answers) for part in stage_parts(artifact, decision))


def test_a_page_is_told_anew_when_the_artifact_was_made_anew_in_its_place(seal):
    decision = Decision("train", "run", "forced")
    finding = {"sign": "empty", "step": 40, "words": "every answer is empty"}
    first = seal("train", {}, handed_down={"monitor": {"findings": []}})
    before = stage_report(first, decision)
    again = seal("train", {}, handed_down={"monitor": {"findings": [finding]}})
    assert again.path == first.path
    assert "every answer is empty" not in before
    assert "every answer is empty" in stage_report(again, decision)


@pytest.mark.parametrize(("action", "said"), [("skip", "Skipped"), ("resume", "Made, from where")])
def test_a_page_without_an_artifact_says_what_was_decided(action, said):
    page = stage_report(None, Decision("sft", action, "a <b>policy</b> is given"))
    assert page.startswith(f"## sft\n\n{said}")
    assert "a &lt;b&gt;policy&lt;/b&gt; is given." in page


def test_an_artifact_whose_manifest_is_broken_still_has_a_page(seal):
    artifact = seal("train", {"loss": 1})
    (artifact.path / "manifest.json").write_text("{")
    page = stage_report(Artifact("train", "key1", artifact.path), Decision("train", "reuse", "same"))
    assert "cannot be read" in page


def test_a_stage_that_recorded_nothing_has_no_empty_tables(seal):
    page = stage_report(seal("train", {}), Decision("train", "run", "never made"))
    assert "All it recorded" not in page
    assert "Where it is" in page
