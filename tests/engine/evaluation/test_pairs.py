import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dpo.loss_table import build
from engine.dpo.losses import StepCounts, WeightedSum
from engine.dpo.margin_losses import Sigmoid
from engine.dpo.reference_free import Sft
from engine.dpo.sorted_losses import Aot
from engine.evaluation.pairs import (
    evaluate_pairs,
    evaluate_rows,
    losses,
    measures,
    pair_rows,
    weighted_rows,
)
from engine.evaluation.sums import Sums, pair_logps
from engine.models.scoring import PairScores
from engine.preferences.pairs import TokenPair, TokenRow
from engine.preferences.schema import EVALUATED, WEIGHTED

BETA = 0.1
# Logratios (2, −1), (0, 0), (−3, 1): one pair right, one tied, one wrong.
ROWS = [(-8.0, -11.0, -10.0, -10.0), (-5.0, -7.0, -5.0, -7.0), (-9.0, -3.0, -6.0, -4.0)]
LOSS = WeightedSum([(1.0, Sigmoid(BETA)), (1.0, Sft())])
REFUSES = [True, False, False]
MEANS_OF_NUMBERS = ("eval_pairs", "eval_prompts", "eval_calibration_error", "eval_beats_length_at_best")


@pytest.fixture
def pairs(make_row):
    """Chosen is longer, as long, shorter: 3, 2 and 1 scored tokens against 2. The last two are of one prompt."""
    return [
        TokenPair(
            f"id{number}", "s", make_row([1], [5] * (3 - number)), make_row([1], [6, 2]), f"p{number % 2}", number == 2
        )
        for number in range(3)
    ]


@pytest.fixture
def logps(pairs):
    return logps_of(pairs, ROWS)


def logps_of(pairs, rows):
    columns = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return pair_logps(pairs, Sums(columns[:, :2]), Sums(columns[:, 2:]))


@pytest.fixture
def found(pairs, logps):
    return evaluate_pairs(pairs, logps, BETA, LOSS, REFUSES, 0)


def test_a_pairs_row_holds_its_logps_and_its_rewards_times_beta(found):
    assert found.rows[2] == pytest.approx(
        {
            "pair_id": "id2", "prompt_id": "p0", "source": "s", "policy_chosen_logps": -9.0,
            "policy_rejected_logps": -3.0, "ref_chosen_logps": -6.0, "ref_rejected_logps": -4.0, "chosen_reward": -0.3,
            "rejected_reward": 0.1, "margin": -0.4, "loss": math.log1p(math.exp(0.4)) + 3 * 9 / 6,
            "chosen_scored_tokens": 1, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": True,
        }
    )  # fmt: skip
    assert [row["chosen_refuses"] for row in found.rows] == REFUSES
    assert pa.Table.from_pylist(found.rows, schema=EVALUATED).to_pylist() == found.rows
    assert set(found.rows[0]) == set(EVALUATED.names)


def test_the_means_over_pairs_have_the_eval_names(found):
    assert found.numbers["eval_rewards/chosen"] == pytest.approx(-0.1 / 3)
    assert found.numbers["eval_rewards/rejected"] == pytest.approx(0)
    assert found.numbers["eval_rewards/margins"] == pytest.approx(-0.1 / 3)
    assert found.numbers["eval_logps/chosen"] == pytest.approx(-22 / 3)
    assert found.numbers["eval_logps/rejected"] == pytest.approx(-21 / 3)
    assert (found.numbers["eval_pairs"], found.numbers["eval_prompts"]) == (3, 2)


def test_log_ratios_are_per_scored_token_and_a_mean_over_pairs(found):
    assert found.numbers["eval_log_ratio_per_token/chosen"] == pytest.approx((2 / 3 + 0 - 3) / 3)
    assert measures(found.rows)["eval_log_ratio_per_token/rejected"].tolist() == [-1 / 2, 0, 1 / 2]


def test_the_share_of_chosen_responses_that_became_less_likely_leaves_out_those_that_stayed(found):
    assert found.numbers["eval_chosen_less_likely"] == pytest.approx(1 / 3)


def test_a_tie_is_one_half_in_the_accuracy_and_counted_on_its_own(found):
    assert found.numbers["eval_rewards/accuracies"] == pytest.approx(0.5)
    assert found.numbers["eval_ties"] == pytest.approx(1 / 3)


def test_the_longer_one_wins_stands_beside_the_accuracy(pairs, found):
    assert found.numbers["eval_longer_wins"] == pytest.approx((1 + 0.5 + 0) / 3)
    untrained = logps_of(pairs[:1], [[0.0] * 4])
    assert evaluate_pairs(pairs[:1], untrained, BETA, LOSS, [False], 0).numbers["eval_longer_wins"] == 1.0


def told_by_length(found, margins, longer):
    """The evaluation of pairs with these margins, each of its own prompt, in some of which the longer one is chosen."""
    sides = [(2, 1) if each else (1, 2) for each in longer]
    rows = [
        {**found.rows[0], "pair_id": str(row), "prompt_id": "", "margin": margin}
        | {"chosen_scored_tokens": chosen, "rejected_scored_tokens": rejected}
        for row, (margin, (chosen, rejected)) in enumerate(zip(margins, sides, strict=True))
    ]
    return evaluate_rows(rows, 0)


@pytest.mark.parametrize("longer", [True, False])
def test_what_the_model_has_over_its_pairs_lengths_is_a_paired_difference(found, longer):
    by_length = [longer] * 240 + [not longer] * 60
    told = told_by_length(found, [1.0] * 270 + [-1.0] * 30, by_length)
    assert told.numbers["eval_beats_length"] == pytest.approx(0.9 - 0.8)
    low, high = told.intervals["eval_beats_length"]
    assert 0.05 < low < 0.1 < high < 0.15
    accuracy = told.intervals["eval_rewards/accuracies"]
    assert low > accuracy[0] - told.intervals["eval_length_baseline"][1]  # they have the pairs in common


@pytest.mark.parametrize("longer", [True, False])
@pytest.mark.parametrize("count", [5, 60, 300])
def test_a_model_that_goes_by_the_length_alone_beats_no_length(found, count, longer):
    by_length = [row % 10 != 0 for row in range(count)]
    told = told_by_length(found, [1.0 if each == longer else -1.0 for each in by_length], by_length)
    assert told.intervals["eval_beats_length"][0] < 0


def test_a_perfect_model_beats_a_length_that_tells_much_where_there_are_enough_prompts_and_never_one_that_tells_all(
    found,
):
    perfect = {
        count: told_by_length(found, [1.0] * count, [row % 20 != 0 for row in range(count)]) for count in (40, 300)
    }
    assert perfect[300].numbers["eval_length_baseline"] == pytest.approx(0.95)
    assert perfect[300].intervals["eval_beats_length"][0] > 0
    assert perfect[40].intervals["eval_beats_length"][0] < 0
    all_by_length = told_by_length(found, [1.0] * 300, [True] * 300)
    assert all_by_length.numbers["eval_beats_length"] == 0
    assert all_by_length.intervals["eval_beats_length"][0] < 0


@pytest.mark.parametrize(("first", "second"), [(0, 2), (2, 0)])
def test_the_baseline_is_the_better_of_the_longer_and_the_shorter_one_wins(found, first, second):
    rows = [dict(found.rows[place], pair_id=f"{number}", prompt_id="") for number, place in enumerate([first] * 50)]
    few = [dict(found.rows[second], pair_id=f"other {number}", prompt_id="") for number in range(10)]
    told = evaluate_rows(rows + few, 0)
    assert told.numbers["eval_length_baseline"] == pytest.approx(50 / 60)
    low, high = told.intervals["eval_length_baseline"]
    assert 0.5 < low < 50 / 60 < high < 1
    longer = told.intervals["eval_longer_wins"]
    assert (low, high) == (longer if first == 0 else (1 - longer[1], 1 - longer[0]))
    even = evaluate_rows(rows[:10] + few, 0)
    assert even.intervals["eval_length_baseline"][0] == 0.5


def test_the_loss_is_the_one_that_was_trained_over_all_held_out_pairs_at_once(found):
    preference = sum(math.log1p(math.exp(-margin)) for margin in (0.3, 0.0, -0.4)) / 3
    sft = 22 / 6  # nats over the chosen scored tokens
    assert found.numbers["eval_loss"] == pytest.approx(preference + sft)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_losses_of_the_pairs_have_the_loss_of_all_as_their_mean(data):
    count = data.draw(st.integers(1, 9))
    numbers = st.lists(st.floats(-500, 0), min_size=4 * count, max_size=4 * count)
    sides = [TokenRow(np.arange(9), np.arange(9) >= data.draw(st.integers(0, 8))) for _ in range(count)]
    pairs = [TokenPair(str(number), "s", side, side) for number, side in enumerate(sides)]
    logps = logps_of(pairs, data.draw(numbers))
    names = st.sampled_from(["sigmoid", "ipo", "sppo_hard", "bco_pair", "sft", "simpo", "orpo", "sigmoid_norm"])
    terms = [{"name": data.draw(names), "weight": data.draw(st.floats(0, 2))} for _ in range(2)]
    loss = build({"beta": 0.3, "loss": terms})
    whole = float(loss(logps, StepCounts(count, sum(side.scored_tokens for side in sides))))
    assert np.mean(losses(pairs, logps, loss)) == pytest.approx(whole)


def test_a_loss_that_couples_pairs_is_that_of_all_for_each(pairs, logps):
    coupled = WeightedSum([(1.0, Aot(BETA))])
    found = evaluate_pairs(pairs, logps, BETA, coupled, REFUSES, 0)
    assert len({row["loss"] for row in found.rows}) == 1
    assert found.numbers["eval_loss"] == pytest.approx(float(coupled(logps, StepCounts(3, 6))))
    assert "eval_loss" not in found.intervals


def test_every_mean_has_an_interval_around_it_that_counts_prompts(make_pairs):
    pairs = [replace(pair, prompt_id=f"p{number // 3}") for number, pair in enumerate(make_pairs(90))]
    random = np.random.default_rng(0)
    # What the pairs of one prompt have in common, so that 90 pairs say little more than 30.
    common = np.repeat(random.normal(size=(30, 4)), 3, axis=0)
    logps = logps_of(pairs, common + 0.1 * random.normal(size=(90, 4)))
    clustered = evaluate_pairs(pairs, logps, BETA, LOSS, [False] * 90, 0)
    alone = evaluate_rows([dict(row, prompt_id="") for row in clustered.rows], 0)
    assert set(clustered.numbers) - set(clustered.intervals) == set(MEANS_OF_NUMBERS)
    for name, (low, high) in clustered.intervals.items():
        assert low <= clustered.numbers[name] <= high
    for name in ("eval_rewards/margins", "eval_rewards/accuracies"):
        widths = [each.intervals[name][1] - each.intervals[name][0] for each in (clustered, alone)]
        assert widths[0] > 1.3 * widths[1]


def test_the_rows_alone_tell_the_same_and_can_be_taken_in_part(found):
    again = evaluate_rows(found.rows, 0)
    assert again == found
    some = evaluate_rows(found.rows[:1], 0)
    assert (some.numbers["eval_rewards/accuracies"], some.numbers["eval_pairs"]) == (1.0, 1)


def test_of_no_pairs_there_are_only_the_counts():
    found = evaluate_rows([], 0)
    assert found.numbers == {"eval_pairs": 0, "eval_prompts": 0}
    assert (found.intervals, found.slices, found.calibration) == ({}, [], [])


def test_slices_and_calibration_are_of_the_same_pairs(found):
    assert {each["slice"] for each in found.slices} == {"length", "chosen_refuses", "truncated"}
    assert sum(each["pairs"] for each in found.calibration) == 3
    confidence = [1 / (1 + math.exp(-margin)) for margin in (0.3, 0.0, 0.4)]
    assert found.numbers["eval_calibration_error"] == pytest.approx(abs(sum(confidence) / 3 - 0.5))


def test_the_measures_are_what_their_means_say(found):
    for name, column in measures(found.rows).items():
        assert found.numbers[name] == pytest.approx(column.mean())
    assert measures(found.rows)["eval_rewards/accuracies"].tolist() == [1.0, 0.5, 0.0]


def test_pairs_and_refusals_must_be_as_many(pairs, logps):
    with pytest.raises(ValueError, match="shorter"):
        pair_rows(pairs, logps, BETA, LOSS, [True])


@pytest.fixture
def scores():
    """Tokens of the three pairs; the sums are those of `ROWS`."""
    tokens = [([-3.0, -3.0, -2.0], [-5.0, -6.0]), ([-2.0, -3.0], [-3.0, -4.0]), ([-9.0], [-1.0, -2.0])]
    return [PairScores(chosen, rejected, sum(chosen), sum(rejected)) for chosen, rejected in tokens]


def test_under_ld_dpo_rewards_and_loss_are_of_the_weighted_sums_and_an_sft_term_is_not(pairs, scores):
    ref = torch.tensor([[-9.0, -10.0], [-5.0, -7.0], [-6.0, -3.0]], dtype=torch.float64)
    logps = pair_logps(pairs, Sums.of(scores, 0.5), Sums(ref, ref))
    spec = {"beta": BETA, "ld_alpha": 0.5, "loss": [{"name": "sigmoid", "weight": 1.0}, {"name": "sft", "weight": 1.0}]}
    rows = pair_rows(pairs, logps, BETA, build(spec), REFUSES)
    assert rows[0]["margin"] == pytest.approx(BETA * (2 + 1))
    assert rows[0]["loss"] == pytest.approx(math.log1p(math.exp(-0.3)) + 3 * 8 / 6)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_under_ld_dpo_a_tail_that_became_unlikely_is_seen_though_no_reward_is_of_it(make_row, alpha):
    pair = TokenPair("a", "s", make_row([1], [5] * 10), make_row([1], [6] * 2), "p", False)
    before = PairScores([-1.0] * 10, [-1.0] * 2, -10.0, -2.0)
    after = PairScores([-0.9] * 2 + [-3.0] * 8, [-9.0] * 2, -25.8, -18.0)
    logps = pair_logps([pair], Sums.of([after], alpha), Sums.of([before], alpha))
    loss = WeightedSum([(1.0, Sigmoid(BETA))], ld_alpha=alpha)
    found = evaluate_pairs([pair], logps, BETA, loss, [False], 0).numbers
    assert found["eval_log_ratio_per_token/chosen"] == pytest.approx(-1.58)
    assert found["eval_log_ratio_per_token/rejected"] == pytest.approx(-8.0)
    assert (found["eval_logps/chosen"], found["eval_chosen_less_likely"]) == (pytest.approx(-25.8), 1.0)
    assert found["eval_rewards/chosen"] == pytest.approx(BETA * (0.2 - alpha * 16))
    [row] = weighted_rows([pair], logps)
    assert row["policy_chosen_logps"] == pytest.approx(-1.8 - alpha * 24)
    assert pa.Table.from_pylist([row], schema=WEIGHTED).num_rows == 1


def without_a_reference(pairs, policy, start):
    simpo = build({"beta": 2.0, "loss": [{"name": "simpo", "weight": 1.0, "simpo_gamma": 0.5}]})
    return evaluate_pairs(pairs, pair_logps(pairs, policy, start), 2.0, simpo, [False] * len(pairs), 0)


def test_without_a_reference_a_reward_is_beta_times_the_mean_logp_a_token(pairs, scores):
    start = Sums(torch.tensor([row[2:] for row in ROWS], dtype=torch.float64))
    found = without_a_reference(pairs, Sums.of(scores), start)
    assert found.rows[0]["chosen_reward"] == pytest.approx(2 * -8 / 3)
    assert found.rows[0]["loss"] == pytest.approx(math.log1p(math.exp(-(2 * (-8 / 3 + 11 / 2) - 0.5))))
    assert found.numbers["eval_log_ratio_per_token/chosen"] == pytest.approx((2 / 3 + 0 - 3) / 3)  # against the start


def test_without_a_reference_what_the_start_has_right_by_its_likelihood_is_told_and_is_no_merit(pairs):
    many = [replace(pairs[row % 3], pair_id=str(row), prompt_id=f"p{row}") for row in range(300)]
    better, worse = ([-1.0 * many[0].chosen.scored_tokens, -9.0], [-9.0, -1.0])
    start = torch.tensor([better if row % 5 else worse for row in range(300)], dtype=torch.float64)
    untrained = without_a_reference(many, Sums(start), Sums(start))
    right = untrained.numbers["eval_rewards/accuracies"]
    assert untrained.numbers["start/eval_rewards/accuracies"] == right > 0.7
    low, high = untrained.intervals["eval_beats_start"]
    assert untrained.numbers["eval_beats_start"] == 0.0 and low < 0 < high
    low, high = untrained.intervals["start/eval_rewards/accuracies"]
    assert low < right < high
    trained = torch.tensor([better] * 300, dtype=torch.float64)
    learnt = without_a_reference(many, Sums(trained), Sums(start))
    assert learnt.numbers["start/eval_rewards/accuracies"] == right
    assert learnt.intervals["eval_beats_start"][0] > 0.1


@pytest.mark.parametrize(("wrong", "reachable"), [(1, False), (30, True)])
def test_whether_any_model_could_be_seen_to_beat_the_start_is_told(pairs, wrong, reachable):
    many = [replace(pairs[1], pair_id=str(row), prompt_id=f"p{row}") for row in range(100)]
    right, start = [[-1.0, -2.0]] * 100, [[-1.0, -2.0]] * (100 - wrong) + [[-2.0, -1.0]] * wrong
    found = without_a_reference(many, *(Sums(torch.tensor(each, dtype=torch.float64)) for each in (right, start)))
    assert found.numbers["eval_beats_start_at_best"] == found.intervals["eval_beats_start"][0]
    assert (found.numbers["eval_beats_start_at_best"] > 0) == reachable


def test_the_start_is_right_by_its_logp_a_token_and_a_tie_is_one_half(pairs):
    start = Sums(torch.tensor([[-3.0, -3.0], [-2.0, -2.0], [-4.0, -2.0]], dtype=torch.float64))
    found = without_a_reference(pairs, start, start)  # of 3, 2 and 1 tokens against 2
    assert found.numbers["start/eval_rewards/accuracies"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_under_a_reference_the_start_has_no_accuracy_of_its_own(found):
    assert not {"start/eval_rewards/accuracies", "eval_beats_start", "eval_beats_start_at_best"} & (
        set(found.numbers) | set(found.intervals)
    )
