"""Trackers that are told of a training through accelerate, none of which can harm it or hold it up for long."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from typing import Any

from accelerate.tracking import GeneralTracker

from engine.training.patience import Patience
from engine.training.random_streams import RandomStreams
from engine.training.tracker_kinds import KINDS, TITLES, Kind, Outcome, Told, place_of

_log = logging.getLogger("dpo")
_LONGEST_END_SECONDS, _LONGEST_STOP_SECONDS = 60.0, 10.0


def trackers_of(names: Sequence[str], told: Told) -> list[GeneralTracker]:
    """The trackers of these names, for `devices.accelerator_on`; nothing is opened yet."""
    return [Guarded(name, told) for name in names]


class Guarded(GeneralTracker):  # type: ignore[misc]
    """A tracker that is begun with the first step it is told, and whose trouble is one warning and no more.

    So is a minute and a twentieth of the training that it took, all tellings together. After it nothing is told to
    it, and its run is ended as one that was killed; others go on. How long its library takes to be imported counts for
    nothing. The random streams stay as they were, and what it prints goes to stderr: the standard output may be
    somebody's JSON.

    Attributes:
        outcome: how the training ended, to be told with the end.
    """

    requires_logging_directory = False

    def __init__(self, name: str, told: Told) -> None:
        self.name = name
        super().__init__()
        self.outcome: Outcome = "finished"
        self._told = told
        self._inner: Kind | None = None
        self._over = False
        self._place, self._patience = place_of(name), Patience()

    @property
    def tracker(self) -> Any:
        """What the tracker's own library calls a run; None before the first step."""
        return self._inner.tracker if self._inner else None

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Tells one step's numbers."""
        if self._over:
            return

        def tell() -> None:
            inner = self._inner or self._begun(step or 1)
            self._patience.spend(self._place, lambda: inner.log(values, step=step))

        # While they begin, libraries warn of what they make of each other.
        with nullcontext() if self._inner else warnings.catch_warnings(action="ignore"):
            self._safely(tell)

    def finish(self) -> None:
        """Has everything written or sent, within limits. Nothing where nothing was told."""
        seconds = _LONGEST_STOP_SECONDS if self.outcome == "killed" else _LONGEST_END_SECONDS
        self._safely(lambda: self._end(self.outcome, seconds))

    def _begun(self, step: int) -> Kind:
        inner = KINDS[self.name](self._told, step)
        try:
            inner.load()
        except BaseException:
            inner.let_go()
            raise

        def start() -> None:
            inner.start()
            inner.store_init_configuration(dict(self._told.config))

        self._inner = inner
        self._patience.spend(self._place, start)
        return inner

    def _safely(self, something: Callable[[], object]) -> None:
        streams = RandomStreams.now()
        try:
            with redirect_stdout(sys.stderr):
                something()
        except Exception as error:
            self._over = True
            _log.warning("from here on %s is told nothing of this training: %s", TITLES[self.name], _reason(error))
            self._abandon()
        finally:
            streams.put_back()

    def _abandon(self) -> None:
        """Lets go of what it holds, as far as that works: the next stage may begin a run of its own."""
        with suppress(Exception), redirect_stdout(sys.stderr):
            self._end("killed", _LONGEST_STOP_SECONDS)

    def _end(self, outcome: Outcome, seconds: float) -> None:
        """Ends what was begun, once. Whatever happens meanwhile, nothing of it is left in the process."""
        inner, self._inner = self._inner, None
        if inner:
            inner.outcome = outcome
            try:
                self._place.do(inner.finish, seconds)
            finally:
                self._place.end()
                inner.let_go()


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
