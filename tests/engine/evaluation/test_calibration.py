import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation.calibration import BINS, calibration, calibration_error


def logit(probability):
    return math.log(probability / (1 - probability))


def test_pairs_are_binned_by_how_sure_the_policy_is_and_empty_bins_left_out():
    margins = [logit(0.55), logit(0.45), logit(0.97), logit(0.99), 0.0]  # the second is sure of the rejected one
    assert calibration(margins) == [
        {"low": 0.5, "high": 0.6, "pairs": 3, "confidence": pytest.approx(1.6 / 3), "accuracy": pytest.approx(0.5)},
        {"low": 0.9, "high": 1.0, "pairs": 2, "confidence": pytest.approx(0.98), "accuracy": 1.0},
    ]


def test_the_error_is_the_gap_weighted_by_pairs():
    bins = [{"pairs": 30, "confidence": 0.6, "accuracy": 0.5}, {"pairs": 10, "confidence": 0.9, "accuracy": 1.0}]
    assert calibration_error(bins) == pytest.approx(0.1)
    assert calibration_error(calibration([])) == 0.0


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60))
def test_any_margins_fall_into_bins_and_the_error_is_between_0_and_1(margins):
    bins = calibration(margins)
    assert sum(each["pairs"] for each in bins) == len(margins)
    assert len(bins) <= BINS
    for each in bins:
        assert 0.5 <= each["low"] < each["high"] <= 1
        assert each["low"] - 1e-6 <= each["confidence"] <= each["high"] + 1e-6
        assert 0 <= each["accuracy"] <= 1
    assert 0 <= calibration_error(bins) <= 1


def test_a_policy_that_is_right_as_often_as_it_says_has_no_error_to_speak_of_and_a_boastful_one_has():
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, 20_000)
    right = random.random(len(margins)) < 1 / (1 + np.exp(-np.abs(margins)))
    honest = np.where(right, np.abs(margins), -np.abs(margins))
    assert calibration_error(calibration(honest)) < 0.015
    assert calibration_error(calibration(5 * honest)) > 0.1
