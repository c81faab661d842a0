import pytest

from engine.errors import StoreError
from engine.reports.gate import (
    comparison_sections,
    comparison_words,
    differences,
    gate_sections,
    gate_words,
    refusal,
    rulings,
)

OURS, OLD = "0123456789abcdef", "fedcba9876543210"
MET = {
    "name": "better-than-length",
    "outcome": "passed",
    "words": "97.5% is above 50.0%",
    "reason": "length is no merit",
}
UNMET = {"name": "over-refusal", "outcome": "failed", "words": "refuses 62.0% of <normal> requests", "reason": "a|b"}
UNKNOWN = {"name": "margins", "outcome": "not comparable", "words": "β differs", "reason": "scale"}
OFF = {"name": "no-worse", "outcome": "not applied", "words": "no model is in service", "reason": "drift"}


def test_a_model_that_passed_and_is_in_service_is_told_so(gated, put):
    promoted = gated("promote", [MET, OFF])["promote"]
    put(OURS)
    assert gate_words(promoted) == [
        "Verdict of the gate: passed. All 1 rules that apply are met.",
        f"In service now: this run's model (promote/{OURS}).",
    ]


def test_every_rule_in_the_way_is_told_with_its_sentence_and_who_stays_in_service(gated, put):
    promoted = gated("keep", [MET, UNMET, UNKNOWN, OFF])["promote"]
    put(OLD)
    assert gate_words(promoted) == [
        "Verdict of the gate: not passed. 2 of 3 rules are not met:",
        "- over-refusal (failed): refuses 62.0% of <normal> requests",
        "- margins (not comparable): β differs",
        f"In service now: another model (promote/{OLD}). Its files are gone.",
    ]


def test_a_model_that_passed_and_is_not_in_service_says_how_to_put_it_there(gated, put):
    promoted = gated("promote")["promote"]
    put(OLD)
    now = f"In service now: another model (promote/{OLD})."
    advice = "`dpo promote` under this run's configuration would put it there."
    assert gate_words(promoted)[-1] == f"{now} Its files are gone. {advice}"


def test_how_to_put_it_there_is_not_said_where_it_would_not_work(gated, put, seal):
    promoted = gated("promote")["promote"]
    assert "dpo promote" not in gate_words(promoted)[-1], "it was held against a model that is not there any more"
    put(OLD)
    later = {"service": "mine", "verdict": "keep"}
    seal("promote", later, key="a" * 16, sealed_at="2026-01-03T03:04:05+0000", handed_down={"candidate": "later"})
    assert "dpo promote" not in gate_words(promoted)[-1], "the command would take the later verdict"


def test_the_same_model_under_another_version_is_this_runs(gated, put):
    promoted = gated("promote")["promote"]
    put(OLD, "ours")
    assert gate_words(promoted)[-1].startswith(f"In service now: this run's model, as version {OLD}.")


def test_a_model_that_serves_against_the_gate_is_told_so_and_is_no_refusal(gated, put):
    promoted = gated("keep", [UNMET])["promote"]
    put(OURS, "ours", "forced")
    serves = f"In service now: this run's model (promote/{OURS}), by force: the gate would refuse it."
    assert gate_words(promoted)[-1] == serves
    assert refusal(promoted) == ""
    put(OLD, "ours")
    assert gate_words(promoted)[-1].startswith(f"In service now: this run's model, as version {OLD}, though the gate")
    put(OLD)
    assert "over-refusal (failed)" in refusal(promoted)


def test_a_verdict_of_no_service_says_that_it_cannot_be_told(seal):
    assert gate_words(seal("promote", {"verdict": "keep"}))[-1].startswith("Which model is in service cannot be told")


def test_a_damaged_record_of_what_is_in_service_is_said_and_breaks_nothing(gated, put):
    promoted = gated("keep", [UNMET])["promote"]
    put(OLD)
    (promoted.path.parent.parent / "promoted" / "mine" / "state.json").write_text("{")
    assert gate_words(promoted)[-1].startswith("Which model is in service cannot be told: ")


def test_the_page_has_every_rule_with_its_outcome_sentence_and_reason(gated):
    verdict, rules = gate_sections(gated("keep", [MET, UNMET])["promote"])
    assert verdict == "**Verdict of the gate: not passed. 1 of 2 rules is not met** In service now: none."
    assert rules.splitlines() == [
        "- passed · `better-than-length`: 97.5% is above 50.0%. *Why there is this rule: length is no merit.*",
        r"- **failed** · `over-refusal`: refuses 62.0% of &lt;normal&gt; requests. *Why there is this rule: a\|b.*",
    ]


def test_where_the_verdict_file_is_gone_the_manifest_tells_the_rules(seal):
    recorded = {"rules": {"a": "is well", "b": "is not"}, "rules_failed": ["b"], "verdict": "keep"}
    promoted = seal("promote", recorded)
    assert [(rule.name, rule.outcome, rule.words) for rule in rulings(promoted)] == [
        ("a", "passed", "is well"),
        ("b", "failed", "is not"),
    ]
    assert "not passed. 1 of 2 rules" in gate_words(promoted)[0]


def test_a_verdict_without_rules_breaks_nothing(seal):
    assert gate_words(seal("promote", {}))[0].startswith("Verdict of the gate: not passed.")
    assert rulings(seal("promote", {}, verdict={"rules": [None, {}]}))[0].name == ""


def test_a_manifest_that_is_broken_is_the_stores_error(seal):
    artifact = seal("promote", {})
    broken = type(artifact)("promote", "other", artifact.path)
    with pytest.raises(StoreError):
        gate_words(broken)


def test_a_comparison_says_on_what_and_what_was_left_out(seal, comparison):
    assert comparison_words(seal("compare", {}, comparison=comparison)) == (
        f"Compared with the model in service (promote/{OLD}) on 393 held-out pairs. "
        "7 more were left out: that model was trained on their prompts."
    )


@pytest.mark.parametrize("files", [{"comparison": {"in_service": None}}, {}])
def test_without_a_model_in_service_that_is_said(seal, files):
    artifact = seal("compare", {"in_service": None}, **files)
    assert "No model was in service before" in comparison_words(artifact)
    assert differences(artifact) == {}


def test_a_model_in_service_that_could_not_be_evaluated_is_said_with_the_reason(seal):
    gone = {"in_service": {"version": OLD}, "unavailable": "its adapter is gone", "differences": {}}
    assert comparison_words(seal("compare", {}, comparison=gone)).endswith(
        "could not be evaluated: its adapter is gone"
    )


def test_where_the_comparison_file_is_gone_the_manifest_tells_the_differences(seal):
    recorded = {
        "difference/eval_ties": 0.1,
        "difference/eval_loss": 0.2,
        "intervals": {"difference/eval_ties": [0, 0.2]},
    }
    artifact = seal("compare", recorded | {"in_service": OLD, "pairs": 4})
    assert differences(artifact) == {"eval_ties": {"value": 0.1, "low": 0, "high": 0.2}, "eval_loss": {"value": 0.2}}
    assert f"promote/{OLD}) on 4 held-out pairs." in comparison_words(artifact)


def test_the_page_of_compare_has_both_models_the_pairs_first_and_what_is_not_comparable(seal, comparison):
    _, numbers, apart = comparison_sections(seal("compare", {}, comparison=comparison))
    assert numbers.splitlines()[2:] == [
        "| held-out pairs put right | 97.0% | 95.0% | +2.0 (-0.4 to +5.0) |",
        "| harmful requests: refused | 100.0% | 50.0% | +50.0 (+40.0 to +60.0) |",
    ]
    assert apart.splitlines()[2:] == ["| mean margin | β differs: 0.1 and 0.2 |"]


def test_a_refusal_says_why_and_what_passed_or_is_unknown_is_none(gated, seal):
    assert "over-refusal (failed)" in refusal(gated("keep", [UNMET])["promote"])
    assert refusal(gated("promote", [MET])["promote"]) == ""
    assert refusal(None) == ""
