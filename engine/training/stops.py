"""Holds a stop back while something must not be torn: Ctrl-C, and the signals that a command or a flow ends by."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has all of them


class Stops:
    """The stops of one run: signals that a handler in Python turns into an exception in the main thread.

    Other threads get no signals, so there all of this does nothing. Signals that end the process at once, or are
    ignored, are left as they are.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._held = False
        self._raised = False  # a stop is on its way out, and what it leaves must not be torn by the next
        self._waiting: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it stops can be held back; those that are not reach their handlers as before.

        Once one was raised, others wait until the next `held` is over: a second Ctrl-C does not hit what the first one
        has to leave in order.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        try:
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                handler = _before(signal.getsignal(number), number)
                if callable(handler):
                    self._handlers[number] = handler  # before it is replaced, since a stop may come in between
                    signal.signal(number, self._come)
            yield
        finally:
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._come:  # else somebody else put another one there
                    signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A stop that comes within it is delivered at its end; an error that ends it goes first, and ends the run too.

        It may be nested: the stop is then delivered at the end of the outermost.
        """
        if self._held:
            yield
            return
        self._held, self._raised = True, False
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            signal.raise_signal(number)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._held or self._raised:
            self._waiting = number
            return
        self._raised = True
        self._handlers[number](number, frame)
        self._raised = False


def _before(handler: object, number: int) -> object:
    """The handler that was there before any run's own: a stop may hit the moment in which a run puts it back."""
    while isinstance(owner := getattr(handler, "__self__", None), Stops):
        handler = owner._handlers[number]
    return handler
