import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.training.state import ClosingSums, TrainingState

losses = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


def sums(values, begun=None, first=1):
    found = begun or ClosingSums()
    for step, value in enumerate(values[first - 1 :], first):
        found = found.plus({"loss": value}, step, len(values))
    return found


@given(losses)
def test_the_means_are_over_the_last_tenth_of_the_steps(values):
    tail = values[-max(1, len(values) // 10) :]
    assert sums(values).means()["loss"] == pytest.approx(sum(tail) / len(tail))


@given(losses, st.integers(0, 60))
def test_sums_that_are_gone_on_with_are_the_same_to_the_bit(values, done):
    done = min(done, len(values))
    begun = ClosingSums()
    for step, value in enumerate(values[:done], 1):
        begun = begun.plus({"loss": value}, step, len(values))
    assert sums(values, begun, done + 1) == sums(values)


def test_of_no_steps_there_are_no_means():
    assert ClosingSums().means() == {}


def test_a_state_holds_the_random_streams_as_they_are_when_it_is_made():
    torch.manual_seed(1)
    state = TrainingState()
    first = torch.rand(1)
    state.rng.put_back()
    assert torch.rand(1).equal(first)


def test_a_step_that_listeners_did_not_hear_of_to_the_end_is_not_told():
    assert TrainingState(0).told == 0
    assert TrainingState(5).told == 5
    assert TrainingState(5, untold={"loss": 1.0}).told == 4
