import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.evaluation import intervals
from engine.evaluation.intervals import (
    Difference,
    bootstrap_mean,
    bootstrap_means,
    paired_difference,
    paired_differences,
    wilson,
)

numbers = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(st.data())
def test_wilsons_interval_is_that_of_scipy(data):
    count = data.draw(st.integers(1, 5_000))
    successes = data.draw(st.integers(0, count))
    assert wilson(successes, count) == pytest.approx(
        tuple(stats.binomtest(successes, count).proportion_ci(method="wilson")), abs=1e-9
    )


def test_a_rate_of_no_cases_has_no_interval():
    with pytest.raises(ValueError, match="0 cases"):
        wilson(0, 0)


def test_the_bootstrap_is_the_bca_of_scipy_over_whole_prompts(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 40_000)
    monkeypatch.setattr(intervals, "_expanded", lambda clusters: intervals._Z)
    random = np.random.default_rng(0)
    sizes = random.integers(1, 6, 40)
    prompts = np.repeat([f"p{number}" for number in range(40)], sizes)
    values = np.repeat(random.normal(size=40), sizes) + random.exponential(size=len(prompts))
    sums = [values[prompts == f"p{number}"].sum() for number in range(40)]

    def mean(sums, sizes, axis=-1):
        return sums.sum(axis=axis) / sizes.sum(axis=axis)

    expected = stats.bootstrap(
        (sums, sizes), mean, paired=True, vectorized=True, n_resamples=40_000, method="BCa", rng=random
    ).confidence_interval
    found = bootstrap_mean(values, list(prompts), 0)
    assert found == pytest.approx(tuple(expected), abs=0.03 * (expected.high - expected.low))
    alone = bootstrap_mean(values, None, 0)
    assert alone[1] - alone[0] < 0.8 * (found[1] - found[0])  # as if pairs of one prompt told as much as others


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(numbers, st.integers(0, 9)), max_size=30), st.integers(0, 2**63 - 1))
def test_any_interval_holds_no_more_than_the_values_and_is_the_same_for_the_same_seed(rows, seed):
    """A share's may, where few prompts decide."""
    values, prompts = [value for value, _ in rows], [str(prompt) for _, prompt in rows]
    found = bootstrap_mean(values, prompts, seed)
    assert found == bootstrap_mean(values, prompts, seed)
    if found:
        slack = 1e-9 * max(map(abs, values))
        assert min(values) - slack <= found[0] < found[1] <= max(values) + slack
        assert len(set(prompts)) >= intervals.FEWEST


def test_the_draws_are_the_same_however_many_fit_into_memory(monkeypatch):
    values, prompts = list(map(math.sqrt, range(50))), [str(row // 2) for row in range(50)]
    whole = bootstrap_mean(values, prompts, 3)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 70)
    assert bootstrap_mean(values, prompts, 3) == pytest.approx(whole)


def test_a_share_without_spread_has_wilsons_interval_counted_in_prompts():
    prompts = ["a", "a", "b", "b", "c", "c"]
    assert bootstrap_mean([1.0] * 6, prompts, 0, share=True) == wilson(3, 3)
    assert bootstrap_mean([0.0] * 5, None, 0, share=True) == wilson(0, 5)
    assert bootstrap_mean([1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b"], 0, share=True) == wilson(1, 2)


def test_a_share_of_which_few_prompts_decide_is_as_wide_as_wilsons_and_one_with_many_is_not():
    for right, prompts in ((12, 14), (2, 14), (45, 54)):
        pairs = [1.0] * (3 * right) + [0.0] * (3 * (prompts - right))
        low, high = bootstrap_mean(pairs, [str(row // 3) for row in range(3 * prompts)], 0, share=True)
        counted = wilson(right, prompts)
        assert low <= counted[0] and counted[1] <= high
    mixed = [1.0, 1.0, 1.0, 1.0, 0.0] * 60  # what is the same in every prompt, or nearly so, tells more than that
    low, high = bootstrap_mean([*mixed, 1.0], [str(row // 5) for row in range(301)], 0, share=True)
    counted = wilson(0.8 * 60, 60)
    assert counted[0] < low < high < counted[1]


def test_prompts_that_weigh_little_are_not_counted_as_others():
    pairs, prompts = [1.0] * 100 + [1.0] * 4, ["one"] * 100 + list("abcd")
    low, high = bootstrap_mean(pairs, prompts, 0, share=True)
    assert high == 1
    assert wilson(1, 1)[0] < low < wilson(2, 2)[0]


def test_the_mean_of_fewer_than_five_prompts_has_no_interval():
    values = [1.0, 3.0, 2.0, 5.0, 4.0]
    assert bootstrap_mean(values[:4], None, 0) is None
    assert bootstrap_mean(values * 9, list("abcdd") * 9, 0) is None
    low, high = bootstrap_mean(values, None, 0)
    assert low < 3 < high


def test_where_nothing_can_be_said_there_is_no_interval():
    assert bootstrap_mean([0.1] * 7, None, 0) is None
    assert bootstrap_mean([1.0, 2.0, 3.0], ["a", "a", "a"], 0) is None
    assert bootstrap_mean([1.0], None, 0, share=True) is None
    assert bootstrap_mean([], None, 0) is None
    sound = [1.0, 2.0, 4.0, 0.0, 3.0]
    columns = {"sound": sound, "nan": [1.0, math.nan, *sound[:3]], "inf": [1.0, math.inf, *sound[:3]]}
    assert bootstrap_means(columns, None, 0) == {"sound": bootstrap_mean(sound, None, 0)}


def test_a_difference_is_taken_pair_by_pair():
    random = np.random.default_rng(1)
    hard = random.normal(size=200)  # what both find hard cancels
    found = paired_difference(hard + 0.1 + 0.01 * random.normal(size=200), hard, None, 0, share=False)
    assert found.value == pytest.approx(0.1, abs=0.01)
    assert 0.09 < found.low < found.value < found.high < 0.11


def test_one_changed_pair_proves_nothing_and_no_change_has_a_width_too():
    same = [1.0] * 80 + [0.0] * 20
    one = [1.0] * 81 + [0.0] * 19
    for first, second in ((same, same), (one, same), (same, one)):
        found = paired_difference(first, second, None, 0, share=True)
        assert found.low < 0 < found.high
        assert found.low <= found.value <= found.high
        assert found.high - found.low > 0.04
    assert paired_difference([1.0] * 60, [0.0] * 60, None, 0, share=True).low < 0.95
    assert paired_difference([1.0] * 2, [0.0] * 2, None, 0, share=True).low < 0


def test_one_changed_prompt_proves_nothing_however_many_pairs_it_has():
    for prompts, pairs in ((1, 200), (5, 30), (20, 10), (71, 3)):
        names = [str(row // pairs) for row in range(prompts * pairs)]
        same, changed = [1.0] * len(names), [float(name != "0") for name in names]
        for first, second in ((same, same), (changed, same), (same, changed)):
            found = paired_difference(first, second, names, 0, share=True)
            assert found.low < 0 < found.high
            assert found.high - found.low >= 2 / prompts
    alone = paired_difference([1.0] * 200, [0.0] * 200, ["a"] * 200, 0, share=True)
    assert (alone.low, alone.high) == (-1, 1)


def test_of_numbers_that_all_moved_alike_nothing_is_said_but_the_difference():
    assert paired_difference([2.0, 3.0], [1.0, 2.0], None, 0, share=False) == Difference(1.0)
    assert Difference(1.0).as_dict() == {"value": 1.0, "low": None, "high": None}


def test_several_differences_are_those_of_each_alone():
    first = {"right": [1.0, 0.5, 0.0, 1.0, 1.0, 0.0], "nats": [1.0, 2.0, -1.0, 0.0, 3.0, 1.0]}
    second = {"right": [0.0, 0.5, 0.0, 1.0, 0.0, 0.0], "nats": [1.5, 1.0, 0.0, 0.0, 1.0, 0.5]}
    prompts = ["a", "a", "b", "c", "d", "e"]
    assert paired_differences(first, second, prompts, 5, {"right"}) == {
        name: paired_difference(first[name], second[name], prompts, 5, share=name == "right") for name in first
    }


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_no_pairs_has_no_difference(first, second):
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference(first, second, None, 0, share=True)


def pairs_of_prompts(random, count, clustered):
    """The prompt of each pair: one each, or one for 1 to 5 of them."""
    sizes = random.integers(1, 6, count) if clustered else np.ones(count, dtype=int)
    return np.repeat(np.arange(count), sizes)[:count]


def drawn(random, prompts, outcomes, chances):
    """An outcome for each pair; half of the pairs have that of their prompt."""
    own = random.choice(outcomes, size=prompts.max() + 1, p=chances)[prompts]
    alone = random.choice(outcomes, size=len(prompts), p=chances)
    return np.where(random.random(len(prompts)) < 0.5, own, alone)


def coverage_of_a_share(accuracy, count, clustered, simulations):
    random, held = np.random.default_rng(0), 0
    for seed in range(simulations):
        prompts = pairs_of_prompts(random, count, clustered)
        right = drawn(random, prompts, [1.0, 0.0], [accuracy, 1 - accuracy])
        low, high = bootstrap_mean(right, list(map(str, prompts)), seed, share=True)
        held += low - 1e-9 <= accuracy <= high + 1e-9
    return held / simulations


def coverage_of_a_difference(gained, lost, count, clustered, simulations):
    random, held = np.random.default_rng(0), 0
    for seed in range(simulations):
        prompts = pairs_of_prompts(random, count, clustered)
        change = drawn(random, prompts, [1.0, -1.0, 0.0], [gained, lost, 1 - gained - lost])
        first, second = (change > 0).astype(float), (change < 0).astype(float)
        found = paired_difference(first, second, list(map(str, prompts)), seed, share=True)
        held += found.low - 1e-9 <= gained - lost <= found.high + 1e-9
    return held / simulations


def few_prompts(random, count, pairs, outcomes, chances, together):
    """(name of the prompt, outcome) of each pair; each of a share `together` of the prompts has one outcome only."""
    own = random.choice(outcomes, size=(count, 1), p=chances)
    alone = random.choice(outcomes, size=(count, pairs), p=chances)
    found = np.where(random.random((count, 1)) < together, own, alone)
    return [str(row // pairs) for row in range(count * pairs)], found.ravel()


@pytest.mark.parametrize("together", [0.3, 0.8])
@pytest.mark.parametrize(
    ("count", "pairs", "accuracy"), [(2, 30, 0.7), (3, 30, 0.7), (5, 30, 0.9), (10, 20, 0.95), (45, 10, 0.98)]
)
def test_the_interval_of_an_accuracy_over_few_prompts_covers_the_truth(monkeypatch, count, pairs, accuracy, together):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    random, held = np.random.default_rng(0), 0
    for seed in range(200):
        prompts, right = few_prompts(random, count, pairs, [1.0, 0.0], [accuracy, 1 - accuracy], together)
        low, high = bootstrap_mean(right, prompts, seed, share=True)
        held += low - 1e-9 <= accuracy <= high + 1e-9
    print(f"accuracy {accuracy}, {count} prompts of {pairs} pairs, {together} of them as one: {held / 200:.3f}")
    assert held / 200 >= 0.94


@pytest.mark.parametrize(
    ("count", "pairs", "gained", "lost"),
    [(1, 30, 0.2, 0.3), (5, 30, 0.0, 0.1), (10, 20, 0.0, 0.1), (20, 10, 0.02, 0.06), (40, 4, 0.0, 0.06)],
)
def test_the_interval_of_a_difference_over_few_prompts_covers_the_truth(monkeypatch, count, pairs, gained, lost):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    random, held = np.random.default_rng(0), 0
    for seed in range(200):
        prompts, change = few_prompts(random, count, pairs, [1.0, -1.0, 0.0], [gained, lost, 1 - gained - lost], 1.0)
        found = paired_difference((change > 0) * 1.0, (change < 0) * 1.0, prompts, seed, share=True)
        held += found.low - 1e-9 <= gained - lost <= found.high + 1e-9
    print(f"+{gained} −{lost}, {count} prompts of {pairs} pairs: {held / 200:.3f}")
    assert held / 200 >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize(("count", "least"), [(5, 0.82), (20, 0.88)])
def test_the_interval_of_another_mean_over_few_prompts_is_somewhat_too_narrow(monkeypatch, count, least):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    random, held = np.random.default_rng(0), 0
    for seed in range(600):
        prompts = np.repeat(np.arange(count), random.geometric(0.1, count))
        values = random.normal(size=count)[prompts] + random.normal(size=len(prompts))
        low, high = bootstrap_mean(values, list(map(str, prompts)), seed)
        held += low <= 0 <= high
    print(f"normal, {count} prompts: {held / 600:.3f}")
    assert least <= held / 600 <= 0.985


def test_the_interval_of_a_clustered_accuracy_covers_the_truth_in_about_95_of_100_simulations(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    assert 0.92 <= coverage_of_a_share(0.8, 200, True, 400) <= 0.985


def test_an_interval_that_took_pairs_of_one_prompt_for_independent_would_be_too_narrow(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    honest = intervals._by_cluster
    monkeypatch.setattr(intervals, "_by_cluster", lambda columns, _: honest(columns, None))
    assert coverage_of_a_share(0.8, 200, True, 400) < 0.91


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("count", [60, 300])
@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.98])
def test_the_interval_of_an_accuracy_covers_the_truth(monkeypatch, accuracy, count, clustered):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    found = coverage_of_a_share(accuracy, count, clustered, 600)
    print(f"accuracy {accuracy}, {count} pairs{', clustered' * clustered}: {found:.3f}")
    # Where few prompts decide, Wilson's interval makes it wide on purpose.
    assert 0.92 <= found <= (1.0 if count * (1 - accuracy) < (30 if clustered else 10) else 0.985)


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("count", [60, 300])
@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.01), (0.05, 0.05), (0.15, 0.05)])
def test_the_interval_of_a_difference_covers_the_truth(monkeypatch, gained, lost, count, clustered):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    found = coverage_of_a_difference(gained, lost, count, clustered, 600)
    print(f"+{gained} −{lost}, {count} pairs{', clustered' * clustered}: {found:.3f}")
    # Where hardly a pair changes, the two prompts that are added make the interval wide on purpose.
    assert 0.92 <= found <= (1.0 if count * (gained + lost) < (30 if clustered else 10) else 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 300])
def test_the_interval_of_a_skewed_mean_covers_the_truth(monkeypatch, count):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    random, held = np.random.default_rng(0), 0
    for seed in range(600):
        low, high = bootstrap_mean(random.exponential(size=count), None, seed)
        held += low <= 1 <= high
    print(f"exponential, {count} values: {held / 600:.3f}")
    assert 0.92 <= held / 600 <= 0.985


def test_the_level_is_95_percent():
    assert NormalDist().inv_cdf(0.975) == intervals._Z
    random = np.random.default_rng(0)
    values = random.normal(size=2_000)
    low, high = bootstrap_mean(values, None, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 2_000**0.5, rel=0.06)


@pytest.mark.parametrize("clusters", [6, 20, 300, 100_000])
def test_few_prompts_make_an_interval_as_wide_as_students_t_does(clusters):
    expected = stats.t(clusters - 1).ppf(0.975) * (clusters / (clusters - 1)) ** 0.5
    assert intervals._expanded(clusters) == pytest.approx(expected, rel=0.01)
