from typing import Any

import pytest

from engine.evaluation.pairs import evaluate_rows
from engine.promotion.defaults import DEFAULT_RULES
from engine.promotion.rules import IN_SERVICE, Compared, Measured, Outcome, decide

GOOD = {
    "eval_beats_length": 0.2,
    "eval_rewards/accuracies": 0.8,
    "eval_length_baseline": 0.6,
    "eval_log_ratio_per_token/chosen": -0.05,
    "start/adversarial/refused": 0.1,
    "dpo/adversarial/refused": 0.9,
    "start/normal/refused": 0.02,
    "dpo/normal/refused": 0.05,
    "start/normal/right": 0.9,
    "dpo/normal/right": 0.88,
    "dpo/all/empty": 0.0,
    "start/all/repetitive": 0.1,
    "dpo/all/repetitive": 0.1,
    "start/all/ended": 0.95,
    "dpo/all/ended": 0.95,
    "dpo/all/kl_per_token": 0.3,
    "train/stopped": 0.0,
}
RELATIVE = ["eval_rewards/accuracies", "dpo/adversarial/refused", "dpo/normal/refused", "dpo/normal/right"]


def failed(differences: dict[str, Any] | None = None, **changed: float) -> list[str]:
    """Names of the default rules that stand in the way of a good model with some numbers changed."""
    metrics = GOOD | {name.replace("__", "/"): value for name, value in changed.items()}
    intervals = {"eval_beats_length": (metrics["eval_beats_length"] - 0.1, 1.0)}
    compared = None
    if differences is not None:
        equal = {name: {"value": 0.0, "low": -0.04, "high": 0.04} for name in RELATIVE}
        compared = Compared("f" * 16, "", GOOD, equal | differences, {})
    return [rule.name for rule in decide(DEFAULT_RULES, Measured(metrics, intervals), compared).failed]


def test_a_good_model_passes_with_and_without_one_in_service():
    assert failed() == []
    assert failed({}) == []
    assert [rule.name for rule in decide(DEFAULT_RULES, Measured({}, {}), None).failed] != []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("beats-length", {"eval_beats_length": 0.09}),
        ("refuses-harmful", {"dpo/adversarial/refused": 0.04}),
        ("over-refusal", {"dpo/normal/refused": 0.13}),
        ("right-answers", {"dpo/normal/right": 0.8}),
        ("empty", {"dpo/all/empty": 0.03}),
        ("repetitive", {"dpo/all/repetitive": 0.16}),
        ("ended", {"dpo/all/ended": 0.8}),
        ("displacement", {"eval_log_ratio_per_token/chosen": -1.1}),
        ("divergence", {"dpo/all/kl_per_token": 2.5}),
        ("stopped", {"train/stopped": 1.0}),
    ],
)
def test_each_fault_is_found_by_the_rule_for_it_alone(name, changed):
    assert failed(**changed) == [name]


@pytest.mark.parametrize(
    ("name", "metric", "value", "low"),
    [
        ("accuracy-in-service", "eval_rewards/accuracies", -0.01, -0.02),
        ("accuracy-in-service-surely", "eval_rewards/accuracies", 0.01, -0.06),
        ("refuses-harmful-in-service", "dpo/adversarial/refused", -0.06, -0.1),
        ("over-refusal-in-service", "dpo/normal/refused", 0.06, 0.0),
        ("right-answers-in-service", "dpo/normal/right", -0.06, -0.1),
    ],
)
def test_each_loss_against_the_model_in_service_is_found_by_the_rule_for_it_alone(name, metric, value, low):
    assert failed({metric: {"value": value, "low": low, "high": 0.2}}) == [name]


def beats_length(margins: list[float], longer: list[bool]) -> Outcome:
    """What the rule says of a model with these margins on pairs whose chosen response is the longer one, or not."""
    lengths = [(2, 1) if each else (1, 2) for each in longer]
    numbers = {"chosen_reward": 0.0, "rejected_reward": 0.0, "loss": 0.0, "source": "s", "prompt_id": ""}
    numbers |= {f"{who}_{side}_logps": -1.0 for who in ("policy", "ref") for side in ("chosen", "rejected")}
    rows = [
        {"pair_id": str(row), "margin": margin, "chosen_scored_tokens": chosen, "rejected_scored_tokens": rejected}
        | numbers
        | {"chosen_refuses": False, "truncated": False}
        for row, (margin, (chosen, rejected)) in enumerate(zip(margins, lengths, strict=True))
    ]
    found = evaluate_rows(rows, 0)
    return decide(DEFAULT_RULES[:1], Measured(found.numbers, found.intervals), None).rules[0]


def test_what_length_alone_gets_right_is_no_merit_and_what_is_right_beyond_it_is_one() -> None:
    longer = [row % 20 != 0 for row in range(300)]
    copied = beats_length([1.0 if each else -1.0 for each in longer], longer)
    assert (copied.name, copied.outcome) == ("beats-length", "failed")
    perfect = beats_length([1.0] * 300, longer)
    assert perfect.outcome == "passed"
    assert perfect.words.startswith(
        "puts 5.0 points more of the held-out pairs right than a rule that looks at the length alone, with 95%"
        " confidence at least "
    )
    assert perfect.words.endswith(" points; at least 0.0 points is asked for (that rule puts 95.0% right)")


def test_where_length_tells_all_pairs_the_rule_says_that_no_model_can_do_better() -> None:
    found = beats_length([1.0] * 300, [True] * 300)
    assert found.outcome == "failed"
    assert "that rule puts 100.0% right: these pairs can be told by their length" in found.words


def beats_start(policy: list[tuple[float, float]], start: list[tuple[float, float]], beta: float = 2.0) -> Outcome:
    """What the rule says of a model without a reference, by the mean logps a token of both responses to each prompt."""
    rows = [
        {
            "pair_id": str(row), "prompt_id": "", "source": "s", "loss": 0.0, "chosen_refuses": False,
            "truncated": False,
            "chosen_reward": beta * chosen, "rejected_reward": beta * rejected, "margin": beta * (chosen - rejected),
            "chosen_scored_tokens": 4, "rejected_scored_tokens": 2 + row % 5,
            "policy_chosen_logps": 4 * chosen, "policy_rejected_logps": (2 + row % 5) * rejected,
            "ref_chosen_logps": 4 * before[0], "ref_rejected_logps": (2 + row % 5) * before[1],
        }
        for row, ((chosen, rejected), before) in enumerate(zip(policy, start, strict=True))
    ]  # fmt: skip
    found = evaluate_rows(rows, 0, reference_free=True)
    verdict = decide(DEFAULT_RULES, Measured(found.numbers, found.intervals), None)
    return next(rule for rule in verdict.rules if rule.name == "beats-start")


def test_without_a_reference_what_the_start_had_right_already_is_no_merit_and_what_is_more_is_one() -> None:
    right, wrong = (-1.0, -1.5), (-1.5, -1.0)
    start = [wrong if row % 5 == 0 else right for row in range(400)]
    untrained = beats_start(start, start)
    assert untrained.outcome == "failed"
    assert "puts 0.0 points more of the held-out pairs right than before the training" in untrained.words
    assert untrained.words.endswith("(the starting policy's own likelihood puts 80.0% right)")
    surer = beats_start([(2 * chosen, 2 * rejected) for chosen, rejected in start], start)
    assert surer.outcome == "failed", "the same pairs right by a wider margin are no more pairs"
    assert beats_start([wrong if row % 20 == 0 else right for row in range(400)], start).outcome == "passed"


def test_a_model_with_a_reference_is_not_asked_to_beat_its_start() -> None:
    metrics, intervals = GOOD, {"eval_beats_length": (0.1, 0.3)}
    told = {rule.name: rule.outcome for rule in decide(DEFAULT_RULES, Measured(metrics, intervals), None).rules}
    assert told["beats-start"] == "not applied"


def test_a_model_that_fell_silent_is_refused_although_its_accuracy_is_perfect():
    fallen = {"eval_rewards/accuracies": 1.0, "dpo/all/empty": 1.0, "dpo/adversarial/refused": 0.0}
    assert "empty" in failed(**fallen)


def test_every_rule_has_a_name_of_its_own_and_a_reason():
    assert len({rule.name for rule in DEFAULT_RULES}) == len(DEFAULT_RULES)
    assert all(len(rule.reason) > 30 for rule in DEFAULT_RULES)
    assert {rule.metric for rule in DEFAULT_RULES if rule.against == IN_SERVICE} == set(RELATIVE)


def test_where_no_right_answer_is_known_no_rule_asks_for_one():
    bare = {name: value for name, value in GOOD.items() if not name.endswith("/right")}
    intervals = {"eval_beats_length": (0.1, 0.3)}
    assert decide(DEFAULT_RULES, Measured(bare, intervals), None).promotes


@pytest.mark.parametrize("step", [0.05, 0.01])
@pytest.mark.parametrize(
    ("metric", "most"),
    [
        ("eval_rewards/accuracies", 0.0),
        ("dpo/adversarial/refused", 0.0),
        ("dpo/normal/refused", 0.02 + 0.10 - 0.05),  # up to where the start and what may be added to it are
        ("dpo/normal/right", 0.88 - (0.90 - 0.05)),
    ],
)
def test_twenty_nights_of_a_little_worse_each_lose_no_more_than_a_fixed_bound_allows(metric, most, step):
    worse = step if metric == "dpo/normal/refused" else -step
    now = GOOD[metric]
    for _ in range(20):
        tonight = now + worse
        if not failed({metric: {"value": worse, "low": worse, "high": worse}}, **{metric: tonight}):
            now = tonight
    assert abs(now - GOOD[metric]) <= most + 1e-9
