import threading
import time

import pytest

from engine.training.patience import Elsewhere, Here, OvertimeError, Patience


class Clock:
    """Stands for the time module, and for a place where everything takes as long as it is told."""

    def __init__(self):
        self.now, self.limits = 100.0, []

    def monotonic(self):
        return self.now

    def do(self, something, seconds):
        self.limits.append(seconds)
        something()

    def end(self):
        pass

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("engine.training.patience.time", clock)
    return clock


def test_a_minute_may_be_spent_and_a_twentieth_of_the_time_since_the_first(clock):
    patience = Patience()
    clock.passes(1000)  # before anything is done
    patience.spend(clock, lambda: clock.passes(20))
    clock.passes(180)
    patience.spend(clock, lambda: clock.passes(30))
    patience.spend(clock, lambda: None)
    assert clock.limits == pytest.approx([60, 60 + 10 - 20, 60 + 11.5 - 50])


def test_what_is_slow_each_time_is_given_up_once_it_has_cost_enough(clock):
    patience, done = Patience(), []
    with pytest.raises(TimeoutError, match="held the training up for 72 seconds in all"):
        for _ in range(100):
            clock.passes(1)
            patience.spend(clock, lambda: done.append(clock.passes(9)))
    assert len(done) == 8


def test_what_is_quick_is_never_given_up(clock):
    patience = Patience()
    for _ in range(100_000):
        clock.passes(1)
        patience.spend(clock, lambda: clock.passes(0.02))


def test_what_fails_fails_and_has_cost_its_time_too(clock):
    patience = Patience(share=0.0)

    def fails():
        clock.passes(40)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        patience.spend(clock, fails)
    patience.spend(clock, lambda: None)
    assert clock.limits == [60, 20]


def test_what_is_done_here_is_done_in_the_callers_thread():
    seen = []
    Here().do(lambda: seen.append(threading.current_thread()), 0.0)
    assert seen == [threading.current_thread()]


def test_what_is_done_elsewhere_is_all_done_in_one_thread_that_ends():
    seen, place = [], Elsewhere("there")
    for _ in range(3):
        place.do(lambda: seen.append(threading.current_thread()), 5)
    assert len(set(seen)) == 1
    assert (seen[0].name, seen[0].daemon) == ("there", True)
    place.end()
    seen[0].join(5)
    assert not seen[0].is_alive()
    place.end()


@pytest.mark.parametrize("error", [ValueError("mine"), TimeoutError("mine"), KeyboardInterrupt("mine")])
def test_what_fails_elsewhere_fails_here(error):
    def fails():
        raise error

    with pytest.raises(type(error), match="mine"):
        Elsewhere("there").do(fails, 5)


def test_what_a_stop_kept_from_being_waited_for_is_left_behind_at_the_end(monkeypatch):
    place, began, wakes, seen = Elsewhere("there"), threading.Event(), threading.Event(), []

    def hangs():
        seen.append(threading.current_thread())
        began.set()
        while not wakes.wait(0.01):
            pass
        seen.append("woke")

    def stopped(*_):
        began.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.training.patience.wait", stopped)
    with pytest.raises(KeyboardInterrupt):
        place.do(hangs, 60)
    place.end()
    wakes.set()
    seen[0].join(5)
    assert not seen[0].is_alive()
    assert len(seen) == 1


def test_what_takes_too_long_is_left_behind_ends_when_it_wakes_and_leaves_the_place_usable():
    place, seen, after = Elsewhere("there"), [], []

    def hangs():
        seen.append(threading.current_thread())
        time.sleep(0.3)
        after.append("woke")

    with pytest.raises(OvertimeError, match="not done within 0 seconds"):
        place.do(hangs, 0.05)
    place.do(lambda: seen.append(threading.current_thread()), 5)
    place.end()
    seen[0].join(5)
    assert not seen[0].is_alive()
    assert after == []
    assert seen[1] is not seen[0]
