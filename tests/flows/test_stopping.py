import signal
import threading

import pytest

from flows._stopping import TERMINATED, terminable


def test_being_terminated_is_an_end_that_can_be_put_in_order():
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as stop, terminable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            done.append("in order")
    assert (stop.value.code, done) == (TERMINATED, ["in order"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_than_the_first_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def within():
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [before]
