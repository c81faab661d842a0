import pytest

from engine.errors import StoreError
from engine.reports.gate import gate_parts, gate_words, refusal, rulings

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


def test_the_page_has_the_verdict_then_every_rule_with_its_reason_those_in_the_way_first(gated):
    verdict, rules = gate_parts(gated("keep", [MET, UNMET, UNKNOWN])["promote"])
    assert verdict == "**Verdict of the gate: not passed. 2 of 3 rules are not met** In service now: none."
    assert rules.splitlines() == [
        "- **failed** · `over-refusal`: refuses 62.0% of &lt;normal&gt; requests.\\",
        r"  *Why: a\|b.*",
        "- **not comparable** · `margins`: β differs.\\",
        "  *Why: scale.*",
        "- passed · `better-than-length`: 97.5% is above 50.0%.\\",
        "  *Why: length is no merit.*",
    ]


def test_rules_that_were_not_applied_share_a_line_for_what_they_share(gated):
    _, rules = gate_parts(gated("promote", [OFF, MET, OFF | {"name": "other"}, OFF | {"words": "odd"}])["promote"])
    assert rules.splitlines()[2:] == [
        "- not applied · `no-worse`, `other`: no model is in service.",
        "- not applied · `no-worse`: odd.",
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


def test_a_refusal_says_why_and_what_passed_or_is_unknown_is_none(gated, seal):
    assert "over-refusal (failed)" in refusal(gated("keep", [UNMET])["promote"])
    assert refusal(gated("promote", [MET])["promote"]) == ""
    assert refusal(None) == ""
