import pytest

from engine.promotion.limits import limits


def told(facts, **metrics):
    whole = facts()
    found = {name: value for name, value in (whole.evaluated["metrics"] | metrics).items() if value is not None}
    return " ".join(limits(facts(evaluated={**whole.evaluated, "metrics": found})))


def test_it_says_on_what_it_was_judged_and_how_much_chance_few_prompts_leave(facts):
    assert "113 pairs of 71 prompts" in told(facts)
    assert "80.0% (70.0 to 90.0)" in told(facts)
    assert "So few" not in told(facts, eval_prompts=5000)
    assert "held out from" not in told(facts, eval_pairs=None)


def test_it_says_what_length_alone_would_have_done(facts):
    assert "length of the answers puts 60.0% of these pairs right" in told(facts)
    assert "length of the answers" not in told(facts, eval_length_baseline=None)


def test_refusals_are_told_by_rules_for_two_languages_and_by_a_judge_where_one_was_asked(facts):
    assert "rules for English and Chinese:" in told(facts)
    assert "a judge model was asked as well" in told(facts, **{"dpo/normal/judged_refused": 0.1})


@pytest.mark.parametrize(("kind", "words"), [("normal", "refuses 5.0% of"), ("adversarial", "refuses 90.0% of")])
def test_over_refusal_and_compliance_are_told_with_what_was_before_or_that_nobody_measured(facts, kind, words):
    assert words in told(facts)
    assert "(2.0% before the training)" in told(facts)
    assert "before the training" not in told(facts, **{"start/normal/refused": None, "start/adversarial/refused": None})
    named = {"normal": "normal", "adversarial": "harmful"}[kind]
    assert f"Whether it refuses {named} requests was not measured." in told(facts, **{f"dpo/{kind}/refused": None})


def test_what_counts_as_right_is_told_or_that_it_was_not_measured(facts):
    assert "counts as right where" in told(facts)
    assert "Whether its answers are right was not measured." in told(facts, **{"dpo/normal/right": None})


def test_how_answers_were_made_is_told(facts):
    assert "the likeliest token each time, 40 at most" in told(facts)


def test_a_model_that_was_refused_or_stopped_or_learnt_from_the_made_up_world_says_so_first(facts):
    monitor = {"stopped_at": 5, "findings": []}
    first, second, third, *_ = limits(
        facts(
            verdict={"verdict": "keep", "rules": []},
            trained={"beta": 0.1, "loss": [], "monitor": monitor},
            sources={"smallworld": (10, 1)},
        )
    )
    assert "not meant to serve" in first
    assert "stopped before its end" in second
    assert "made-up world" in third
    assert "refused it" not in told(facts)
    assert "made-up" not in told(facts)
