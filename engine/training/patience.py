"""How long a training waits for somebody who is told of it: work in a thread of its own, within a budget of time."""

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

_Asked = SimpleQueue[tuple[Callable[[], object], "Future[None]"] | None]


class Patience:
    """A budget for all the waiting that a training does: so many seconds, and a share of the time since the first."""

    def __init__(self, seconds: float = 60.0, share: float = 0.05) -> None:
        self._seconds, self._share = seconds, share
        self._first: float | None = None
        self._spent = 0.0

    def spend(self, place: "Place", something: Callable[[], object]) -> None:
        """Has something done at a place. Raises TimeoutError when the budget is spent, else what it raises."""
        began = time.monotonic()
        self._first = began if self._first is None else self._first
        left = self._seconds + self._share * (began - self._first) - self._spent
        try:
            if left <= 0:
                raise OvertimeError
            place.do(something, left)
        except OvertimeError:
            held_up = self._spent + time.monotonic() - began
            raise TimeoutError(f"it held the training up for {held_up:.0f} seconds in all") from None
        finally:
            self._spent += time.monotonic() - began


class OvertimeError(TimeoutError):
    """Something was not done in its time, and was left behind."""


class Place(Protocol):
    """Where something is done."""

    def do(self, something: Callable[[], object], seconds: float) -> None:
        """Returns when it is done. Raises what it raises; OvertimeError where a place keeps to its `seconds`."""
        ...

    def end(self) -> None:
        """Nothing more is done here for now."""
        ...


class Here:
    """The caller's own thread, for what waits for nobody: it costs nothing, and knows no limit."""

    def do(self, something: Callable[[], object], seconds: float) -> None:
        something()

    def end(self) -> None:
        pass


class Elsewhere:
    """One thread for all that is done, as libraries keep what they hold by thread; see `Place`.

    What is not done in time is left behind with its thread, which ends with the first line of Python that it runs
    again: when it wakes, it neither draws a random number nor tells anybody anything. Whatever is done next is done in
    another thread. So nothing belongs here that must not be broken off halfway, such as an import.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: _Asked | None = None
        self._thread: Thread | None = None
        self._latest: Future[None] | None = None

    def do(self, something: Callable[[], object], seconds: float) -> None:
        """Raises OvertimeError, too, while something that was given up by a stop is still going on."""
        done: Future[None] = Future()
        self._latest = done
        self._begun().put((something, done))
        if not wait([done], seconds).done:
            self.end()
            raise OvertimeError(f"it was not done within {seconds:.0f} seconds")
        done.result()

    def end(self) -> None:
        """Leaves behind what a stop kept from being waited for, too."""
        if self._asked:
            if self._latest and not self._latest.done():
                self._leave()
            self._asked.put(None)
        self._asked = self._thread = self._latest = None

    def _begun(self) -> _Asked:
        if self._asked is None:
            self._asked = SimpleQueue()
            self._thread = Thread(target=_work, args=(self._asked,), name=self._name, daemon=True)
            self._thread.start()
        return self._asked

    def _leave(self) -> None:
        if self._thread and self._thread.ident:
            thread = ctypes.c_ulong(self._thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))


def _work(asked: _Asked) -> None:
    while given := asked.get():
        something, done = given
        try:
            something()
        except BaseException as error:  # whoever waits for it decides
            done.set_exception(error)
        else:
            done.set_result(None)
