import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.promotion.rules import Compared, Measured, Outcome, Rule, decide

ACCURACY, REFUSED = "eval_rewards/accuracies", "dpo/normal/refused"


def rule(**given: Any) -> Rule:
    return Rule(**({"name": "a-rule", "metric": REFUSED, "reason": "so"} | given))


def measured(intervals: dict[str, Any] | None = None, **metrics: Any) -> Measured:
    return Measured({name.replace("__", "/"): value for name, value in metrics.items()}, intervals or {})


def compared(**given: Any) -> Compared:
    nothing: dict[str, Any] = {"unavailable": "", "service": {}, "differences": {}, "not_comparable": {}}
    return Compared(**({"version": "f" * 16} | nothing | given))


def outcome(one: Rule, tonight: Measured | None = None, against: Compared | None = None) -> Outcome:
    verdict = decide([one], tonight or measured(), against)
    assert verdict.promotes == (not verdict.rules[0].blocks)
    return verdict.rules[0]


class TestRule:
    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"at_least": 0, "at_most": 1},
            {"at_least": math.nan},
            {"at_most": 1, "name": "a.b"},
            {"at_most": 1, "x": 1},
            {"at_most": 1, "takes": "low"},
            {"at_least": 1, "takes": "high"},
        ],
    )
    def test_has_one_finite_bound_on_the_cautious_side_and_a_name_that_can_be_a_key(self, wrong):
        with pytest.raises(ValidationError):
            rule(**wrong)

    def test_takes_another_number_for_its_bound(self):
        assert rule(at_most=0.1).bounded(0.2) == rule(at_most=0.2)
        assert rule(at_least=0.1).bounded(0.0) == rule(at_least=0.0)


class TestNumberAlone:
    @pytest.mark.parametrize(("value", "word"), [(0.62, "failed"), (0.1, "passed"), (0.0, "passed"), (0.11, "failed")])
    def test_is_held_against_the_bound(self, value, word):
        found = outcome(rule(at_most=0.1), measured(dpo__normal__refused=value))
        assert (found.outcome, found.measured, found.bound) == (word, value, 0.1)
        assert found.words == f"refuses {100 * value:.1f}% of normal requests; at most 10.0% is allowed"

    def test_is_held_against_another_number_and_what_is_added_to_it(self):
        one = rule(against="start/normal/refused", at_most=0.1)
        found = outcome(one, measured(dpo__normal__refused=0.15, start__normal__refused=0.04))
        assert (found.outcome, found.bound) == ("failed", pytest.approx(0.14))
        assert found.words.endswith(
            "; at most 14.0% is allowed (before the training it refuses 4.0% of normal requests, +10.0 points)"
        )

    def test_that_meets_its_bound_exactly_does_not_fail_by_rounding(self):
        one = rule(against="start/normal/refused", at_most=0.1)
        assert 0.7 + 0.1 < 0.8
        assert outcome(one, measured(dpo__normal__refused=0.8, start__normal__refused=0.7)).outcome == "passed"
        assert outcome(rule(at_least=0.8), measured(dpo__normal__refused=0.7 + 0.1)).outcome == "passed"

    @pytest.mark.parametrize(
        ("takes", "bound", "word"),
        [("value", "at_least", "passed"), ("low", "at_least", "failed"), ("high", "at_most", "failed")],
    )
    def test_at_the_cautious_end_of_its_interval(self, takes, bound, word):
        one = rule(metric=ACCURACY, against="eval_length_baseline", takes=takes, **{bound: 0.0})
        tonight = measured({ACCURACY: [0.55, 0.8]}, eval_rewards__accuracies=0.7, eval_length_baseline=0.6)
        found = outcome(one, tonight)
        assert found.outcome == word
        assert found.measured == {"value": 0.7, "low": 0.55, "high": 0.8}[takes]
        assert ("with 95% confidence at least 55.0%" in found.words) == (takes == "low")
        assert ("with 95% confidence at most 80.0%" in found.words) == (takes == "high")
        assert "a rule that looks at the length alone puts 60.0% right" in found.words

    @pytest.mark.parametrize("missing", ["metric", "against", "interval"])
    def test_that_was_not_measured_stands_in_the_way_unless_it_need_not_be(self, missing):
        named = {"eval_rewards__accuracies": 0.7, "eval_length_baseline": 0.6}
        named.pop({"metric": "eval_rewards__accuracies", "against": "eval_length_baseline"}.get(missing, ""), None)
        tonight = measured({} if missing == "interval" else {ACCURACY: [0.65, 0.8]}, **named)
        given = {"metric": ACCURACY, "against": "eval_length_baseline", "at_least": 0.0, "takes": "low"}
        found = outcome(rule(**given), tonight)
        assert (found.outcome, found.blocks) == ("not measured", True)
        assert 'promote.without = ["a-rule"]' in found.words
        found = outcome(rule(**given, where_measured=True), tonight)
        assert (found.outcome, found.blocks) == ("not applied", False)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", ["metric", "against", "interval"])
    @pytest.mark.parametrize("bound", [{"at_least": -9.0, "takes": "low"}, {"at_most": 9.0, "takes": "high"}])
    def test_that_is_not_finite_never_passes(self, value, place, bound):
        numbers = {"metric": 0.5, "against": 0.5, "interval": 0.4} | {place: value}
        tonight = measured(
            {ACCURACY: [numbers["interval"]] * 2},
            eval_rewards__accuracies=numbers["metric"],
            eval_length_baseline=numbers["against"],
        )
        one = rule(metric=ACCURACY, against="eval_length_baseline", where_measured=True, **bound)
        found = outcome(one, tonight)
        assert (found.outcome, found.measured) == ("failed", None)
        assert f"has {value} for `" in found.words

    @pytest.mark.parametrize("value", ["0.01", None, True, [0.0]])
    def test_that_is_no_number_is_none(self, value):
        assert outcome(rule(at_most=0.1), measured(dpo__normal__refused=value)).outcome == "not measured"


class TestAgainstTheModelInService:
    ONE = rule(against="in_service", at_most=0.05)

    def difference(self, value: float, low: float = -1.0, high: float = 1.0, **given: Any) -> Compared:
        named = {"service": {REFUSED: 0.05}, "differences": {REFUSED: {"value": value, "low": low, "high": high}}}
        return compared(**(named | given))

    def test_is_not_applied_where_there_is_none(self):
        found = outcome(self.ONE, measured(dpo__normal__refused=1.0), None)
        assert (found.outcome, found.blocks) == ("not applied", False)
        assert decide([self.ONE], measured(), None).in_service is None

    @pytest.mark.parametrize(("value", "word"), [(0.07, "failed"), (0.05, "passed"), (-0.5, "passed")])
    def test_is_held_against_the_difference(self, value, word):
        found = outcome(self.ONE, None, self.difference(value))
        assert (found.outcome, found.measured, found.bound) == (word, value, 0.05)
        assert decide([self.ONE], measured(), self.difference(value)).in_service == "f" * 16

    def test_says_both_numbers_and_the_difference(self):
        assert outcome(self.ONE, None, self.difference(0.07)).words == (
            "refuses 12.0% of normal requests, the model in service 5.0%: +7.0 points; at most +5.0 points is allowed"
        )
        assert outcome(self.ONE, None, self.difference(0.07, service={})).words.startswith(
            "differs from the model in service in `dpo/normal/refused` by +7.0 points; "
        )

    @pytest.mark.parametrize(
        ("takes", "bound", "word"),
        [
            ("value", {"at_least": -0.05}, "passed"),
            ("low", {"at_least": -0.05}, "failed"),
            ("high", {"at_most": 0.05}, "failed"),
        ],
    )
    def test_at_the_cautious_end_of_the_interval_of_the_difference(self, takes, bound, word):
        one = rule(against="in_service", takes=takes, **bound)
        found = outcome(one, None, self.difference(0.01, low=-0.08, high=0.1))
        assert found.outcome == word
        assert ("with 95% confidence at least -8.0 points" in found.words) == (takes == "low")

    def of_few(self, value: float, low: float, equal: float | None) -> Outcome:
        one = rule(metric=ACCURACY, against="in_service", at_least=-0.05, takes="low")
        ends = {"value": value, "low": low, "high": 1.0, "equal_low": equal, "equal_high": 0.25}
        return outcome(one, None, compared(differences={ACCURACY: ends}, pairs=9))

    def test_by_so_few_that_the_same_model_would_fail_is_not_measured_and_says_what_to_do(self):
        found = self.of_few(0.0, -0.25, -0.25)
        assert (found.outcome, found.blocks, found.measured, found.bound) == ("not measured", True, -0.25, -0.05)
        assert found.words == (
            "cannot be told from a worse one by 9 held-out pairs: even the same model again might be 25.0 points lower;"
            " at least -5.0 points is asked for; have more of them (subsample.eval_share), or decide by hand"
            " (dpo promote --force)"
        )

    @pytest.mark.parametrize(
        ("value", "low", "equal"),
        [(0.0, -0.25, -0.04), (0.0, -0.25, None), (-0.3, -0.5, -0.25)],
        ids=["enough pairs", "not known", "worse by what was measured"],
    )
    def test_fails_where_few_pairs_are_not_the_only_reason(self, value, low, equal):
        assert self.of_few(value, low, equal).outcome == "failed"

    def test_by_few_that_show_it_all_the_same_passes(self):
        assert self.of_few(0.3, 0.01, -0.25).outcome == "passed"

    def test_by_so_few_answers_names_the_prompts(self):
        one = rule(against="in_service", at_most=0.05, takes="high")
        ends = {"value": 0.0, "low": -1.0, "high": 0.4, "equal_low": -0.4, "equal_high": 0.4}
        found = outcome(one, None, compared(differences={REFUSED: ends}, service={"dpo/normal/count": 3}))
        assert "by 3 prompts: even the same model again might be 40.0 points higher" in found.words
        assert "evaluate.prompts" in found.words

    @pytest.mark.parametrize("where_measured", [False, True])
    def test_that_could_not_be_evaluated_stands_in_the_way(self, where_measured):
        one = rule(against="in_service", at_most=0.05, where_measured=where_measured)
        found = outcome(one, measured(dpo__normal__refused=0.0), self.difference(0.0, unavailable="its policy is gone"))
        assert (found.outcome, found.blocks) == ("not measured", True)
        assert "its policy is gone" in found.words
        assert "dpo run --from compare --force" in found.words

    @pytest.mark.parametrize("where_measured", [False, True])
    def test_by_a_number_that_cannot_be_compared_does_not_count_as_passed(self, where_measured):
        one = rule(metric="eval_loss", against="in_service", at_most=0.5, where_measured=where_measured)
        other = compared(
            differences={"eval_loss": {"value": 0.0, "low": 0.0, "high": 0.0}},
            not_comparable={"eval_loss": "β differs: 0.1 and 0.2"},
        )
        found = outcome(one, None, other)
        assert (found.outcome, found.blocks) == ("not comparable", True)
        assert "β differs: 0.1 and 0.2" in found.words

    def test_by_a_number_that_only_one_of_them_has_stands_in_the_way_unless_it_need_not_be(self):
        assert outcome(self.ONE, None, compared()).outcome == "not measured"
        one = rule(against="in_service", at_most=0.05, where_measured=True)
        assert outcome(one, None, compared()).outcome == "not applied"

    @pytest.mark.parametrize("end", ["value", "low"])
    def test_by_a_difference_that_is_not_finite_never_passes(self, end):
        one = rule(against="in_service", at_least=-0.05, takes="low")
        numbers = {"value": 0.0, "low": 0.0, "high": 0.0} | {end: math.nan}
        assert outcome(one, None, self.difference(**numbers)).outcome == "failed"


class TestCompared:
    def test_is_read_as_it_was_sealed(self):
        told = {
            "in_service": {"version": "ab", "beta": 0.1},
            "unavailable": "",
            "service": {"x": 1},
            "differences": {},
            "not_comparable": {"y": "why"},
            "pairs": 9,
        }
        assert Compared.read(told) == Compared("ab", "", {"x": 1}, {}, {"y": "why"}, 9)
        assert Compared.read({"in_service": None}) is None


def test_one_rule_that_fails_keeps_the_model_out_and_all_are_told():
    rules = [rule(name="one", at_most=0.5), rule(name="two", at_most=0.1), rule(name="three", at_least=0.2)]
    verdict = decide(rules, measured(dpo__normal__refused=0.3), None)
    assert [each.outcome for each in verdict.rules] == ["passed", "failed", "passed"]
    assert [each.name for each in verdict.failed] == ["two"]
    told = verdict.as_dict()
    assert (told["verdict"], told["in_service"], told["rules"][1]["reason"]) == ("keep", None, "so")
    assert set(told["rules"][0]) == {"name", "outcome", "measured", "bound", "words", "reason"}
    assert decide(rules[:1], measured(dpo__normal__refused=0.3), None).as_dict()["verdict"] == "promote"


numbers = st.one_of(st.floats(), st.none(), st.text(max_size=3))


@given(
    st.builds(
        rule,
        against=st.sampled_from(["", "in_service", "start/normal/refused"]),
        takes=st.sampled_from(["value", "high"]),
        where_measured=st.booleans(),
        at_most=st.floats(-1, 1),
    ),
    st.dictionaries(st.sampled_from([REFUSED, "start/normal/refused"]), numbers),
    st.dictionaries(st.just(REFUSED), st.tuples(numbers, numbers)),
    st.dictionaries(st.just(REFUSED), st.fixed_dictionaries({"value": numbers, "low": numbers, "high": numbers})),
)
def test_whatever_was_measured_gives_a_verdict_that_can_be_sealed(one, metrics, intervals, differences):
    verdict = decide([one], Measured(metrics, intervals), compared(differences=differences, service=metrics))
    json.dumps(verdict.as_dict(), allow_nan=False)
    (found,) = verdict.rules
    assert found.words
    if found.outcome == "passed":
        assert math.isfinite(found.measured)
        assert found.measured <= found.bound + 1e-6
