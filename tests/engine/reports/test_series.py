import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reports.series import edges, extremes, few, finite, smoothed, span


def test_what_cannot_be_reckoned_with_is_no_number():
    assert np.isnan(finite([math.nan, math.inf, -math.inf, 1e308])).all()
    assert finite([1, -2.5]).tolist() == [1, -2.5]


@pytest.mark.parametrize("count", [0, 1, 2, 119, 120, 121, 100_000])
def test_a_few_points_are_drawn_the_first_and_the_last_among_them(count):
    places = few(count)
    assert len(places) == min(count, 120)
    assert set(places.tolist()) >= ({0, count - 1} if count else set())


def test_smoothing_keeps_a_constant_and_starts_without_a_bias():
    assert smoothed(np.full(500, 3.0)) == pytest.approx(np.full(500, 3.0))
    assert smoothed(np.array([5.0, 1.0]))[0] == 5.0


def test_smoothing_takes_most_of_the_scatter_away():
    noise = np.random.default_rng(0).normal(size=3_000)
    assert smoothed(noise)[500:].std() < 0.2 * noise.std()


@given(
    st.lists(st.floats(-1e12, 1e12) | st.integers(-99, 99).map(float), min_size=1, max_size=50),
    st.lists(st.floats(-1e6, 1e6), max_size=2),
)
def test_every_value_lies_in_a_bin_or_beyond_the_outermost(values, shown):
    numbers = np.array(values)
    found = edges(numbers, *span(numbers, shown))
    assert (np.diff(found) > 0).all()
    beyond = (numbers < found[0]) | (numbers > found[-1])
    assert np.histogram(numbers, found)[0].sum() == len(values) - beyond.sum()


def test_a_histogram_goes_to_the_ends_where_these_are_near_and_leaves_them_out_where_they_are_far():
    bulk = np.linspace(0, 100, 1_000)
    assert span(bulk) == (0, 100)
    assert span(np.append(bulk, [-50, 150])) == (-50, 150)
    low, high = span(np.append(bulk, [-900, 900]))
    assert -1 < low < 1 and 99 < high < 101


@pytest.mark.parametrize("count", [50, 113, 150, 199, 400])
def test_one_value_far_out_does_not_press_the_others_into_a_few_bins(count):
    values = np.append(np.random.default_rng(0).normal(size=count - 1), 1_000)
    low, high = span(values)
    assert high < 10
    assert np.count_nonzero(np.histogram(values, edges(values, low, high))[0]) > 10


def test_the_extremes_of_a_line_are_kept_however_long_it_is():
    values = np.sin(np.arange(10_000))
    values[3_333] = 500
    places = extremes(values)
    assert 3_333 in places
    assert len(places) <= 120
    assert (np.diff(places) > 0).all()
    assert extremes(np.array([1.0])).tolist() == [0]


def test_a_histogram_reaches_the_highest_value_where_something_else_is_shown_as_far_out():
    values = np.append(np.linspace(0, 100, 1_000), 900)
    assert span(values, [900]) == (0, 900)
    assert span(values, [-40]) == (0, pytest.approx(99.5, abs=1))


@given(st.integers(0, 500), st.integers(1, 3_000))
def test_bins_of_whole_numbers_are_equally_wide_and_the_last_ends_with_the_highest(low, more):
    found = edges(np.array([low, low + more], dtype=float), low, low + more)
    assert len(set(np.diff(found))) == 1
    assert np.diff(found)[0] % 1 == 0
    assert found[-1] == low + more + 0.5
