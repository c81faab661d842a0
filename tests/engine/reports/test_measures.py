import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reports.measures import (
    PAIRS,
    TELLING,
    difference_shown,
    drawable,
    form_of,
    in_short,
    in_words,
    is_of_a_policy,
    kind_in_words,
    kind_of,
    shown,
    whisker,
)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("eval_rewards/accuracies", "held-out pairs put right"),
        ("start/eval_rewards/accuracies", "put right before the training, by its likelihood alone"),
        ("dpo/adversarial/refused", "harmful requests: refused"),
        ("service/normal/right", "normal requests: answered right"),
        ("dpo/all/empty", "requests: answered with nothing"),
        ("dpo/xstest:normal/refused", "normal requests of xstest: refused"),
        ("dpo/normal/count", "normal requests: how many"),
        ("grad_norm", "grad_norm"),
    ],
)
def test_a_number_is_called_by_words_where_there_are_some(metric, words):
    assert in_words(metric) == words


def test_a_kind_is_told_with_the_set_it_is_of():
    assert [kind_in_words(kind) for kind in ("adversarial", "all", "flames:adversarial", "odd")] == [
        "harmful",
        "all",
        "harmful, of flames",
        "odd",
    ]


@pytest.mark.parametrize("metric", ["start/normal/count", "dpo/all/kl_per_token", "service/a:b:normal/judged_refused"])
def test_numbers_of_a_policy_are_known_by_their_names(metric):
    assert is_of_a_policy(metric)


@pytest.mark.parametrize(
    "metric",
    ["eval_rewards/margins", "difference/dpo/normal/refused", "start/x", "start//refused", "dpo/normal/odd", ""],
)
def test_other_numbers_are_of_no_policy(metric):
    assert not is_of_a_policy(metric)


@given(st.text())
def test_any_name_can_be_asked_for(name):
    assert isinstance(in_words(name), str)
    assert form_of(name)(0.5)
    if is_of_a_policy(name):
        assert kind_of(name)


def test_a_number_stands_before_its_interval_in_its_own_unit():
    metrics = {"dpo/normal/refused": 0.1, "eval_loss": 0.93, "intervals": {"eval_loss": [0.89, 0.96]}}
    assert shown(metrics, "eval_loss") == "0.93 (0.89 to 0.96)"
    assert shown(metrics, "dpo/normal/refused") == "10.0%"
    metrics["intervals"]["dpo/normal/refused"] = [0.04, 0.231]
    assert shown(metrics, "dpo/normal/refused") == "10.0% (4.0 to 23.1)"


@pytest.mark.parametrize("intervals", [None, [], {"eval_loss": None}, {"eval_loss": [1]}, {"eval_loss": ["a", "b"]}])
def test_a_number_without_a_whole_interval_stands_alone(intervals):
    assert shown({"eval_loss": 0.5, "intervals": intervals}, "eval_loss") == "0.5"
    assert shown({"intervals": intervals}, "eval_loss") == "–"


def test_differences_of_shares_are_points_and_all_have_signs():
    found = {"value": 0.023, "low": -0.004, "high": 0.05}
    assert difference_shown("eval_rewards/accuracies", found) == "+2.3 (-0.4 to +5.0)"
    assert difference_shown("eval_log_ratio_per_token/chosen", found) == "+0.023 (-0.004 to +0.05)"
    assert difference_shown("eval_ties", {"value": -0.0, "low": None, "high": None}) == "+0.0"


@pytest.mark.parametrize("found", [None, 0.1, {}, {"value": None}, {"value": "x"}])
def test_a_difference_that_is_not_known_is_left_open(found):
    assert difference_shown("eval_ties", found) == "–"


def test_names_for_charts_fit_into_a_chart_and_stand_for_one_measure_each():
    names = [in_short(f"dpo/{what}") for what in TELLING]
    assert names[:2] == ["harmful: refused", "harmful: by judge"]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) + len(", before") <= 28
    assert in_short("eval_rewards/accuracies") == "pairs put right"
    assert in_short("eval_ties") == PAIRS["eval_ties"][0]
    assert in_short("odd") == "odd"


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), -float("inf"), 10**400, [1]])
def test_only_finite_numbers_can_be_drawn(value):
    assert not drawable(value)
    assert whisker({"a": value}, "a", "name", "#000000") is None


@pytest.mark.parametrize("bounds", [None, 3, [1], [1, "x"], [0, float("nan")], {"low": 0}])
def test_a_value_without_a_sound_interval_is_drawn_alone(bounds):
    drawn = whisker({"a": 0.5, "intervals": {"a": bounds}}, "a", "name", "#000000")
    assert (drawn.value, drawn.low, drawn.high) == (0.5, None, None)
    assert whisker({"a": 0.5, "intervals": 3}, "a", "name", "#000000").low is None


def test_a_value_is_drawn_with_its_interval():
    drawn = whisker({"a": 0.5, "intervals": {"a": [0.4, 0.6]}}, "a", "name", "#000000")
    assert (drawn.name, drawn.value, drawn.low, drawn.high, drawn.colour) == ("name", 0.5, 0.4, 0.6, "#000000")
