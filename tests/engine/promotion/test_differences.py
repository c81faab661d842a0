import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation.answers import RATES, generation_metrics
from engine.promotion.differences import answer_differences, in_tokens

UNKNOWN = dict.fromkeys(("right", "judged_refused", "kl_per_token"))
PLAIN = {"empty": False, "repetitive": False, "ended": True, "tokens": 3, "repeated_share": 0.0}


def row(refused, kind="normal", prompt_set="ours", **more):
    known = {"policy": "dpo", "kind": kind, "prompt_set": prompt_set, "refused": refused}
    return {**PLAIN, **UNKNOWN, **known, **more}


@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from(["normal", "adversarial"]), st.sampled_from("ab")),
        min_size=1,
        max_size=12,
    )
)
def test_the_value_is_the_difference_of_the_two_rates_in_every_group(answers):
    tonight = [row(first, kind, group) for first, _, kind, group in answers]
    service = [row(second, kind, group) for _, second, kind, group in answers]
    one, other = generation_metrics(tonight), generation_metrics(service)
    found = answer_differences(tonight, service, list(one), seed=0)
    names = {name for name in one if name.rpartition("/")[2] != "count"}
    assert set(found) == names
    for name in names:
        assert found[name].value == pytest.approx(one[name] - other[name])


def test_rates_are_paired_by_prompt_and_unknown_ones_left_out():
    tonight = [row(True, right=True), row(False, right=None), row(False, right=False)]
    service = [row(True, right=None), row(False, right=True), row(False, right=True)]
    found = answer_differences(tonight, service, ["dpo/normal/right", "dpo/normal/judged_refused"], seed=0)
    assert list(found) == ["dpo/normal/right"]
    assert found["dpo/normal/right"].value == -1  # of the one prompt of which it is known of both


def test_a_rate_that_no_answer_changed_still_has_a_width():
    same = [row(False) for _ in range(10)]
    [difference] = answer_differences(same, same, ["dpo/all/refused"], seed=0).values()
    assert difference.value == 0
    assert difference.low < 0 < difference.high
    assert set(RATES) > {"refused"}


def test_what_is_counted_in_tokens_is_named_with_its_reason():
    names = ["eval_logps/chosen", "eval_log_ratio_per_token/rejected", "dpo/all/kl_per_token", "dpo/normal/tokens"]
    others = ["eval_rewards/accuracies", "dpo/normal/refused", "eval_chosen_less_likely", "eval_loss"]
    found = in_tokens([*names, *others])
    assert list(found) == names
    assert all("tokenizer" in why for why in found.values())
