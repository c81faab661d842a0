import pytest

from engine.promotion.wording import amount, beside, change, described, is_share


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("dpo/normal/refused", 0.62, "refuses 62.0% of normal requests"),
        ("dpo/adversarial/refused", 1.0, "refuses 100.0% of harmful requests"),
        ("start/normal/right", 0.4, "before the training it answers 40.0% of normal requests right"),
        ("dpo/xstest:normal/refused", 0.1, "refuses 10.0% of normal requests of xstest"),
        ("dpo/mine:odd/empty", 0.1, "leaves 10.0% of odd requests of mine without an answer"),
        (
            "dpo/all/kl_per_token",
            0.25,
            "has moved away from the starting policy by 0.25 nats per token",
        ),
        ("dpo/all/tokens", 31.26, "answers all requests in 31.3 tokens on average"),
        ("eval_rewards/accuracies", 0.714, "puts 71.4% of the held-out pairs right"),
        ("eval_beats_length", 0.221, "puts 22.1 points more of the held-out pairs right than a rule that looks at"),
        ("eval_beats_length", -0.03, "puts 3.0 points less of the held-out pairs right than a rule that looks at"),
        ("eval_beats_start", 0.05, "puts 5.0 points more of the held-out pairs right than before the training"),
        ("start/eval_rewards/accuracies", 0.8, "before the training it puts 80.0% of the held-out pairs right"),
        ("eval_beats_length", float("nan"), "has a `eval_beats_length` of nan"),
        ("eval_log_ratio_per_token/chosen", -1.5, "has moved the chosen responses by -1.5 nats per token from"),
        ("eval_chosen_less_likely", 0.5, "finds 50.0% of the chosen responses less likely"),
        ("train/stopped", 1.0, "had its training stopped by the monitor 1 times"),
        ("eval_loss", 0.512, "has a `eval_loss` of 0.512"),
        ("eval_loss", float("nan"), "has a `eval_loss` of nan"),
        ("nonsense", 2.0, "has a `nonsense` of 2"),
    ],
)
def test_a_number_becomes_a_predicate(metric, value, words):
    assert described(metric, value).startswith(words)


def test_differences_have_a_sign_and_shares_of_them_are_points():
    assert change("dpo/normal/refused", 0.07) == "+7.0 points"
    assert change("eval_rewards/accuracies", -0.05) == "-5.0 points"
    assert change("eval_beats_length", 0.1) == change("eval_beats_start", 0.1) == "+10.0 points"
    assert change("dpo/all/kl_per_token", 0.5) == "+0.5 nats per token"
    assert change("eval_loss", -0.25) == "-0.25"


def test_what_is_ahead_of_the_length_is_in_points_and_has_the_length_beside_it():
    assert amount("eval_beats_length", 0.12) == "12.0 points"
    assert amount("eval_beats_length", -0.0001) == "0.0 points"
    assert beside("eval_beats_length", {"eval_length_baseline": 0.6}) == "that rule puts 60.0% right"
    assert "no model can do better" in beside("eval_beats_length", {"eval_length_baseline": 1.0})
    few = {"eval_length_baseline": 0.95, "eval_beats_length_at_best": -0.01, "eval_prompts": 30}
    assert "on 30 prompts even a model that is always right could not show it" in beside("eval_beats_length", few)
    assert "could not" not in beside("eval_beats_length", few | {"eval_beats_length_at_best": 0.01})
    start = {"start/eval_rewards/accuracies": 0.8}
    assert beside("eval_beats_start", start) == "the starting policy's own likelihood puts 80.0% right"
    few = {"start/eval_rewards/accuracies": 0.99, "eval_beats_start_at_best": -0.01, "eval_prompts": 300}
    told = beside("eval_beats_start", few)
    assert "99.0% right: on 300 prompts even a model that is always right could not show it; hold out more" in told
    assert "could not" not in beside("eval_beats_start", few | {"eval_beats_start_at_best": 0.0})
    assert beside("eval_beats_start", {"start/eval_rewards/accuracies": 1.0}).endswith(
        "100.0% right: no model can do better"
    )
    assert beside("eval_beats_start", {}) == beside("eval_rewards/accuracies", start) == ""
    assert beside("eval_beats_length", {}) == beside("eval_rewards/accuracies", {"eval_length_baseline": 0.6}) == ""


def test_shares_are_told_from_other_numbers():
    assert is_share("start/eval_rewards/accuracies")
    assert all(map(is_share, ("eval_rewards/accuracies", "eval_ties", "eval_length_baseline", "dpo/all/ended")))
    assert not any(map(is_share, ("eval_rewards/margins", "dpo/all/tokens", "train/stopped", "eval_pairs")))
    assert amount("dpo/all/ended", 0.5) == "50.0%"
