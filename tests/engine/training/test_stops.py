import signal
import threading

import pytest

from engine.training.stops import Stops

NUMBERS = [signal.SIGINT, signal.SIGTERM]


class Stopped(BaseException):
    pass


@pytest.fixture(autouse=True)
def handlers():
    """Handlers that raise, as those of a command or a flow do."""

    def stop(number, frame):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in NUMBERS}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_stop_waits_until_what_must_not_be_torn_is_over(number):
    stops, done = Stops(), []
    with pytest.raises(Stopped) as caught, stops.watched():
        with stops.held():
            signal.raise_signal(number)
            done.append("moved")
        done.append("never")
    assert (caught.value.args, done) == ((number,), ["moved"])


def test_a_stop_in_an_inner_part_waits_for_the_outer_one():
    stops, done = Stops(), []
    with pytest.raises(Stopped), stops.watched(), stops.held():
        with stops.held():
            signal.raise_signal(signal.SIGTERM)
        done.append("after the inner part")
    assert done == ["after the inner part"]


def test_a_stop_elsewhere_reaches_its_handler_at_once():
    stops = Stops()
    with pytest.raises(Stopped), stops.watched():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_a_second_stop_waits_until_the_first_one_has_left_everything_in_order():
    stops, done = Stops(), []
    with pytest.raises(Stopped) as caught, stops.watched():
        try:
            signal.raise_signal(signal.SIGINT)
        except Stopped:
            signal.raise_signal(signal.SIGTERM)
            with stops.held():
                done.append("saved")
            done.append("never")
    assert (caught.value.args, done) == ((signal.SIGTERM,), ["saved"])


def test_after_a_stop_that_somebody_swallowed_the_next_one_is_no_weaker():
    stops = Stops()
    with pytest.raises(Stopped), stops.watched():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        with stops.held():
            pass
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_an_error_goes_before_a_stop_that_waited():
    stops = Stops()
    with pytest.raises(ValueError), stops.watched(), stops.held():
        signal.raise_signal(signal.SIGINT)
        raise ValueError


@pytest.mark.parametrize("ends", [None, ValueError, Stopped])
def test_afterwards_every_handler_is_the_one_it_was(handlers, ends):
    stops = Stops()
    try:
        with stops.watched():
            assert signal.getsignal(signal.SIGTERM) != handlers
            if ends is Stopped:
                signal.raise_signal(signal.SIGTERM)
            elif ends:
                raise ends
    except (ValueError, Stopped):
        pass
    assert [signal.getsignal(number) for number in NUMBERS] == [handlers] * 2


def test_signals_that_are_ignored_or_end_the_process_are_left_as_they_are():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Stops().watched():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_in_another_thread_it_touches_no_handler(handlers):
    seen = []

    def work():
        stops = Stops()
        with stops.watched(), stops.held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]


def test_a_stop_that_hit_the_moment_in_which_handlers_are_put_back_leaves_the_next_run_its_stops():
    left = Stops().watched()
    left.__enter__()  # and never left
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped), Stops().watched():
        signal.raise_signal(signal.SIGINT)
