import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.comparison import (
    change,
    common,
    compared_rows,
    differences,
    got_better,
    got_worse,
    log_ratio_margin,
    not_comparable,
)
from engine.evaluation.intervals import Difference
from engine.loss_config import PreferenceConfig
from engine.preferences.schema import COMPARED, EVALUATED

IDENTITY = {"beta": 0.1, "reference": "abc", "loss": [{"name": "sigmoid"}]}


def row(pair_id, margin, beta=0.1, prompt_id=""):
    """A pair whose log-ratio margin is `margin` nats, all of it on the chosen side."""
    return {
        "pair_id": pair_id, "prompt_id": prompt_id, "source": "s", "policy_chosen_logps": margin - 20.0,
        "policy_rejected_logps": -10.0, "ref_chosen_logps": -20.0, "ref_rejected_logps": -10.0,
        "chosen_reward": beta * margin, "rejected_reward": 0.0, "margin": beta * margin, "loss": 0.5,
        "chosen_scored_tokens": 4, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": False,
    }  # fmt: skip


def rows(**margins):
    return [row(pair_id, margin) for pair_id, margin in margins.items()]


def test_a_row_is_one_of_evaluates():
    assert set(row("a", 1.0)) == set(EVALUATED.names)
    assert log_ratio_margin(row("a", 3.5, beta=9.0)) == 3.5


def test_pairs_are_joined_by_their_id_whatever_the_order():
    mine, theirs = common(rows(a=1.0, b=2.0, c=3.0), rows(d=0.0, c=-1.0, a=5.0))
    assert [(here["pair_id"], there["pair_id"]) for here, there in zip(mine, theirs, strict=True)] == [
        ("a", "a"),
        ("c", "c"),
    ]
    assert log_ratio_margin(theirs[0]) == 5.0


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.floats(-9, 9), max_size=20), st.randoms())
def test_nothing_depends_on_the_order_of_the_other_evaluation(margins, shuffle):
    tonight, other = rows(**margins), rows(**{pair: -margin / 2 for pair, margin in margins.items()})
    shuffled = shuffle.sample(other, len(other))
    assert compared_rows(tonight, shuffled) == compared_rows(tonight, other)
    assert differences(tonight, shuffled, 0) == differences(tonight, other, 0)


def test_differences_are_tonights_minus_the_others_over_the_common_pairs():
    pairs = [f"id{number}" for number in range(60)]
    tonight = [row(pair, 1.0 if number < 54 else -1.0) for number, pair in enumerate(pairs)]
    other = [row(pair, 0.5 if number < 40 else -0.5) for number, pair in enumerate(pairs)] + rows(alone=-9.0)
    found = differences(tonight, other, 0)
    right = found["eval_rewards/accuracies"]
    assert right.value == pytest.approx(14 / 60)
    assert 0 < right.low < right.value < right.high < 0.5
    per_token = (54 - 6) / 60 / 4 - 0.5 * (40 - 20) / 60 / 4
    assert found["eval_log_ratio_per_token/chosen"].value == pytest.approx(per_token)
    assert found["eval_log_ratio_per_token/rejected"] == Difference(0.0)
    assert found["eval_ties"].low < 0 < found["eval_ties"].high
    assert not {"eval_longer_wins", "eval_beats_length"} & set(found)  # of the pairs, not of a model


def test_a_difference_counts_prompts_not_pairs():
    sizes = random.Random(0)
    tonight, other = [], []
    for prompt in range(30):
        better = sizes.random() < 0.4
        for pair in range(4):
            tonight.append(row(f"{prompt}-{pair}", 1.0 if better else -1.0, prompt_id=f"p{prompt}"))
            other.append(row(f"{prompt}-{pair}", -1.0, prompt_id=f"p{prompt}"))
    alone = [dict(each, prompt_id="") for each in tonight]
    clustered, naive = (differences(each, other, 0)["eval_rewards/accuracies"] for each in (tonight, alone))
    assert clustered.value == naive.value
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)


def test_what_is_not_comparable_is_left_out_and_what_has_nothing_in_common_is_empty():
    tonight = rows(a=1.0, b=2.0)
    assert "eval_rewards/margins" not in differences(tonight, tonight, 0, {"eval_rewards/margins"})
    assert differences(tonight, rows(c=1.0), 0) == {}
    assert compared_rows(tonight, rows(c=1.0)) == []


def test_under_the_same_beta_reference_and_loss_everything_is_comparable():
    assert not_comparable(IDENTITY, dict(IDENTITY)) == {}


def test_another_beta_says_nothing_of_margins_rewards_and_loss():
    found = not_comparable(IDENTITY, IDENTITY | {"beta": 0.2})
    assert set(found) == {
        "eval_loss", "eval_rewards/chosen", "eval_rewards/rejected", "eval_rewards/margins", "eval_calibration_error",
    }  # fmt: skip
    assert set(found.values()) == {"β differs: 0.1 and 0.2"}


def test_every_reason_is_told():
    found = not_comparable(IDENTITY, {"beta": 0.2, "reference": "def", "loss": []})
    assert found["eval_loss"] == (
        "β differs: 0.1 and 0.2; the reference policies differ; they were trained with different losses"
    )
    assert found["eval_rewards/margins"] == "β differs: 0.1 and 0.2; the reference policies differ"
    for name in ("eval_logps/chosen", "eval_chosen_less_likely"):
        assert found[name] == "the reference policies differ"
    assert set(not_comparable(IDENTITY, IDENTITY | {"loss": []})) == {"eval_loss"}


def test_what_is_not_known_is_not_taken_for_equal():
    assert "eval_rewards/margins" in not_comparable({}, {})
    assert not_comparable(IDENTITY, {"loss": IDENTITY["loss"], "reference": "abc"})["eval_loss"] == (
        "β differs: 0.1 and unknown"
    )


SIMPO = {"loss": [{"name": "simpo", "weight": 1.0}]}


def test_a_loss_without_a_reference_has_rewards_and_an_accuracy_of_its_own():
    found = not_comparable(IDENTITY, IDENTITY | SIMPO)
    assert found["eval_rewards/accuracies"] == (
        "one is rewarded for its log-ratio to a reference, the other for its own log-probability a token"
    )
    assert {"eval_rewards/margins", "eval_ties", "eval_beats_length", "eval_loss"} <= set(found)
    assert not {"eval_log_ratio_per_token/chosen", "eval_logps/chosen"} & set(found)
    assert not_comparable(IDENTITY | SIMPO, IDENTITY | SIMPO) == {}
    orpo = {"loss": [{"name": "orpo", "weight": 1.0}]}
    assert set(not_comparable(IDENTITY | SIMPO, IDENTITY | orpo)) == {"eval_loss"}


def test_tokens_that_weigh_otherwise_leave_nothing_of_rewards_to_compare_and_all_of_plain_sums():
    found = not_comparable(IDENTITY, IDENTITY | {"ld_alpha": 0.5})
    assert {"eval_rewards/margins", "eval_loss", "eval_rewards/accuracies", "eval_beats_length"} <= set(found)
    plain = {"eval_log_ratio_per_token/chosen", "eval_logps/rejected", "eval_chosen_less_likely"}
    assert not plain & set(found)
    assert not_comparable(IDENTITY, IDENTITY | {"ld_alpha": None}) == {}


def test_what_a_loss_is_trained_with_besides_counts_where_it_decides_a_number():
    assert set(not_comparable(IDENTITY, IDENTITY | {"f_divergence_type": "forward_kl"})) == {"eval_loss"}
    assert not_comparable(IDENTITY, IDENTITY | {"use_weighting": True}) == {}, "an evaluation weighs no pairs"


def test_an_evaluation_of_an_earlier_version_is_comparable_with_the_same_loss_of_now():
    then = {"beta": 0.1, "reference": "abc", "loss": [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}]}
    now = PreferenceConfig(beta=0.1).spec() | {"reference": "abc"}
    assert not_comparable(now, then) == not_comparable(then, now) == {}


def test_accuracy_and_log_ratio_per_token_are_comparable_under_any_beta_and_reference():
    apart = not_comparable(IDENTITY, {})
    assert not {"eval_rewards/accuracies", "eval_log_ratio_per_token/chosen"} & set(apart)


def test_each_common_pair_has_a_row_without_beta():
    [found] = compared_rows([row("a", 2.0, beta=0.1, prompt_id="p")], [row("a", 0.0, beta=0.7), row("b", 1.0)])
    assert found == {
        "pair_id": "a", "prompt_id": "p", "source": "s", "tonight_right": 1.0, "service_right": 0.5,
        "tonight_log_ratio_margin": 2.0, "service_log_ratio_margin": 0.0,
    }  # fmt: skip
    assert pa.Table.from_pylist([found], schema=COMPARED).to_pylist() == [found]
    assert set(found) == set(COMPARED.names)


def test_the_pairs_that_got_worse_come_with_the_deepest_fall_first():
    tonight = rows(wrong=-1.0, deep=-7.0, lower_but_right=1.0, tie=0.0, still_wrong=-9.0, better=2.0, best=3.0)
    other = rows(wrong=2.0, deep=1.0, lower_but_right=8.0, tie=0.5, still_wrong=-1.0, better=-1.0, best=-4.0)
    found = compared_rows(tonight, other)
    assert [each["pair_id"] for each in got_worse(found)] == ["deep", "wrong", "tie"]
    assert [change(each) for each in got_worse(found)] == [-8.0, -3.0, -0.5]
    assert [each["pair_id"] for each in got_better(found)] == ["best", "better"]
