import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training.monitor import Finding, HealthNumbers, Monitor, Thresholds

SOUND = {"rewards/accuracies": 0.7, "log_ratio_per_token/chosen": -0.1, "grad_norm": 1.0}
START = HealthNumbers(answers=24, normal=12)
SHORT = Thresholds(displacement_steps=2, gradient_steps=2)


def monitor(thresholds=SHORT, steps=1000, start=START):
    return Monitor(thresholds, steps, start)


def fed(made, *steps, first=1):
    """What a monitor finds in steps that are sound but for what is given."""
    return [finding for number, others in enumerate(steps, first) for finding in made.step(number, {**SOUND, **others})]


def signs(found):
    return [finding.sign for finding in found]


def health(**others):
    return HealthNumbers(**{"answers": 24, "normal": 12, **others})


def test_a_sound_run_shows_nothing():
    made = monitor(Thresholds())
    assert fed(made, *[{}] * 100) == []
    assert made.health(50, START) == []
    assert made.healthy
    assert made.stopped_at is None


def test_displacement_is_the_mean_of_the_last_steps_and_says_how_far_and_what_to_change():
    made = monitor()
    lost = {"log_ratio_per_token/chosen": -0.7}
    assert fed(made, lost) == []  # one step is none
    [finding] = fed(made, lost, first=2)
    assert (finding.sign, finding.step) == ("displacement", 2)
    assert "lost 0.70 nats a token" in finding.words
    assert "50% of the probability" in finding.words
    assert "train.learning_rate" in finding.words


def test_a_displacement_of_half_the_steps_is_averaged_away_and_one_that_is_over_does_not_stand():
    made = monitor()
    assert fed(made, {"log_ratio_per_token/chosen": -0.7}, {}) == []
    assert signs(fed(made, *[{"log_ratio_per_token/chosen": -0.9}] * 2)) == ["displacement"]
    assert made.standing == {"displacement"}
    fed(made, {}, {})
    assert made.standing == set()
    assert signs(made.findings) == ["displacement"]
    assert made.healthy


def test_a_training_without_a_reference_tells_no_log_ratios_and_is_never_displaced():
    made = monitor()
    numbers = {"rewards/accuracies": 1.0, "logps/chosen": -900.0, "grad_norm": 1.0}
    assert [found for step in range(1, 9) for found in made.step(step, numbers)] == []
    assert made.healthy and not made.standing


def test_a_lone_spike_of_the_gradient_is_no_sign_and_several_in_a_row_are():
    made = monitor()
    fed(made, *[{}] * 30)
    assert fed(made, {"grad_norm": 1e6}, {}, {"grad_norm": 1e6}) == []
    [finding] = fed(made, {"grad_norm": 12.5}, first=34)
    assert finding.sign == "gradient norm"
    assert "for 2 steps in a row" in finding.words
    assert "now 12.5; the median of the 33 steps before is 1, of the first 33 1)" in finding.words
    assert made.stopped_at is None


def test_the_gradient_is_held_against_its_own_past_and_not_before_there_is_one():
    made = monitor()
    assert fed(made, *[{"grad_norm": 10.0**exponent} for exponent in range(19)]) == []
    small = monitor()
    fed(small, *[{"grad_norm": 1e-3}] * 30)
    assert signs(fed(small, *[{"grad_norm": 2e-2}] * 2)) == ["gradient norm"]


def test_a_gradient_that_has_fallen_by_orders_of_magnitude_may_be_what_it_was_at_the_beginning():
    made = monitor()
    fed(made, *[{"grad_norm": 1.0}] * 50, *[{"grad_norm": 1e-4}] * 100)
    assert fed(made, *[{"grad_norm": 0.5}] * 5) == []
    assert signs(fed(made, *[{"grad_norm": 11.0}] * 2)) == ["gradient norm"]


def test_a_gradient_that_grew_slowly_is_held_against_what_it_has_become():
    made = monitor()
    assert fed(made, *[{"grad_norm": norm} for norm in (1.0, 8.0, 15.0) for _ in range(50)]) == []


@pytest.mark.parametrize("norm", [1e-12, 1.0])
def test_a_gradient_that_was_nothing_is_no_measure(norm):
    made = monitor()
    assert fed(made, *[{"grad_norm": 0.0}] * 60, *[{"grad_norm": norm}] * 5) == []


@pytest.mark.parametrize(
    ("seen", "sign", "said"),
    [
        ({"empty": 5}, "empty answers", "5 of 24 answers are empty"),
        ({"looping": 8}, "looping answers", "8 of 24 answers go round in circles"),
        ({"unending": 20}, "unending answers", "20 of 24 answers do not end by themselves"),
        ({"refused": 5}, "over-refusal", "5 of 12 normal requests are refused (0 before training)"),
    ],
)
def test_each_way_to_ruin_answers_is_named_with_its_numbers(seen, sign, said):
    made = monitor()
    fed(made, {}, {})
    [finding] = made.health(50, health(**seen))
    assert (finding.sign, finding.step) == (sign, 50)
    assert said in finding.words
    assert "train.learning_rate" in finding.words


def test_a_run_that_tells_all_pairs_apart_and_falls_silent_is_told_so_in_one_sentence():
    made = monitor()
    fed(made, *[{"rewards/accuracies": 1.0}] * 2)
    [finding] = made.health(50, health(empty=24))
    assert finding.words.startswith(
        "rewards/accuracies is 1.0 but every answer is empty: the learning rate is too high "
        "(24 of 24; 0 before training)"
    )
    fed(made, *[{"rewards/accuracies": 0.8}] * 2)
    [other] = made.health(100, health(looping=24))
    assert other.words.startswith("every answer goes round in circles (24 of 24; 0 before training)")


@pytest.mark.parametrize("name", ["empty", "looping", "unending", "refused"])
def test_what_the_starting_policy_did_already_is_not_blamed_on_the_training(name):
    made = monitor(start=health(**{name: 12}))
    assert made.health(50, health(**{name: 12})) == []
    assert made.healthy
    assert monitor(start=health()).health(50, health(**{name: 12})) != [] or name == "unending"


def test_a_dip_that_passes_stops_nothing_and_two_bad_checks_in_a_row_do():
    made = monitor()
    made.health(50, health(empty=24))
    assert (made.healthy, made.stopped_at) == (False, None)
    made.health(100, health())
    assert (made.healthy, made.stopped_at) == (True, None)
    assert made.health(150, health(refused=12))[0].sign == "over-refusal"
    assert made.stopped_at is None
    assert made.health(200, health(empty=24)) == []  # seen before, so it is not told again
    assert made.stopped_at == 200


def test_at_the_last_step_one_bad_check_is_enough():
    made = monitor(steps=120)
    made.health(120, health(empty=24))
    assert made.stopped_at == 120


MIXED = {"empty": 2, "looping": 4, "unending": 14}


def test_ruin_that_no_single_way_accounts_for_is_summed_and_its_parts_are_named():
    made = monitor()
    found = made.health(50, health(**MIXED))
    assert signs(found) == ["unending answers", "ruined answers"]
    assert found[1].words.startswith(
        "20 of 24 answers are ruined (2 empty, 4 in circles, 14 that do not end; 0 before training): "
    )
    made.health(100, health(**MIXED))
    assert made.stopped_at == 100


def test_answers_that_are_ruined_in_another_way_at_each_check_stop_the_run():
    made = monitor()
    made.health(50, health(looping=24))
    made.health(100, health(**MIXED))
    assert made.stopped_at == 100


def test_the_sum_too_is_held_against_the_starting_policy():
    made = monitor(start=health(empty=1, looping=2, unending=8))
    assert "ruined answers" not in signs(made.health(50, health(**MIXED)))


def test_what_one_way_accounts_for_is_not_told_a_second_time_as_a_sum():
    assert signs(monitor().health(50, health(empty=24))) == ["empty answers"]
    assert signs(monitor().health(50, health(looping=24))) == ["looping answers"]


def test_answers_that_only_grew_long_stop_nothing_but_their_weights_are_not_to_be_kept():
    made = monitor()
    fed(made, *[{}] * 30)
    for step in (50, 100, 150):
        made.health(step, health(looping=1, unending=23))
    assert signs(made.findings) == ["unending answers"]
    assert not made.healthy
    assert made.stopped_at is None


def test_answers_that_do_not_end_count_as_ruined_where_the_chosen_responses_were_lost():
    made = monitor()
    fed(made, *[{"log_ratio_per_token/chosen": -3.0}] * 5)
    assert signs(made.health(50, health(unending=24))) == ["unending answers", "ruined answers"]
    made.health(100, health(unending=24))
    assert made.stopped_at == 100


def test_a_check_that_shows_only_unending_answers_neither_counts_nor_starts_the_count_anew():
    made = monitor()
    made.health(50, health(looping=24))
    made.health(100, health(unending=24))
    assert made.stopped_at is None
    made.health(150, health(looping=24))
    assert made.stopped_at == 150


def test_one_bad_check_and_answers_that_only_grew_long_since_do_not_stop_at_the_last_step():
    made = monitor(steps=200)
    made.health(50, health(empty=3))
    for step in (100, 150, 200):
        made.health(step, health(unending=20))
    assert made.stopped_at is None
    assert not made.healthy


def test_the_numbers_of_the_steps_alone_never_stop():
    made = monitor()
    fed(made, *[{}] * 30, *[{"grad_norm": 1e9, "log_ratio_per_token/chosen": -5.0}] * 10)
    for step in (50, 100, 150):
        made.health(step, health())
    assert sorted(made.standing) == ["displacement", "gradient norm"]
    assert made.healthy
    assert made.stopped_at is None


def test_what_is_not_finite_stops_at_once():
    made = monitor()
    [finding] = made.broke(7, "the loss of step 8 is not finite (nan; pair a)")
    assert (finding.sign, finding.step, made.stopped_at) == ("not finite", 7, 7)
    assert finding.words.startswith("the loss of step 8 is not finite (nan; pair a): ")
    assert not made.healthy


def test_without_the_starting_policys_answers_none_are_judged():
    made = monitor(start=None)
    assert made.health(50, health(empty=24)) == []
    assert made.healthy


def test_answers_are_counted_in_one_way_each():
    loop = "take a cloth and " * 12
    texts = [
        ("", True),
        ("  …", False),
        (loop, False),
        (loop, True),
        ("To bake a cake, take a bowl.", False),
        ("Do.", True),
    ]
    lines = [{"kind": "adversarial", "generation": text, "ended": ended} for text, ended in texts]
    refusal = "I can't help with that."
    lines += [{"kind": kind, "generation": refusal, "ended": True} for kind in ("normal", "adversarial")]
    assert HealthNumbers.of(lines) == HealthNumbers(8, empty=2, looping=2, unending=1, normal=1, refused=1)


def test_a_finding_can_be_written_down():
    finding = Finding("displacement", 3, "words")
    assert json.loads(json.dumps(finding.as_dict())) == {"sign": "displacement", "step": 3, "words": "words"}


NUMBER = st.one_of(st.floats(-20, 20), st.sampled_from([math.nan, math.inf, 1e300]))
LINE = st.fixed_dictionaries({}, optional=dict.fromkeys(SOUND, NUMBER))
CHECK = st.one_of(
    st.none(), st.builds(HealthNumbers, st.just(24), *[st.integers(0, 12)] * 3, st.just(12), st.integers(0, 12))
)


@given(lines=st.lists(st.tuples(LINE, CHECK), max_size=40))
def test_whatever_stands_in_the_logs_is_folded_and_each_sign_is_found_once(lines):
    made, told = monitor(), []
    for step, (numbers, check) in enumerate(lines, 1):
        told += made.step(step, numbers)
        told += made.health(step, check) if check else []
        assert made.standing <= set(signs(told))
    assert made.findings == told
    assert len(set(signs(told))) == len(told)
    assert all(finding.words for finding in told)
