"""What the stages log and how they fail, in the logs of Prefect's runs: once, in words, and without secrets."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from engine.errors import PipelineError
from engine.secrets import Redacting, outgoing

_log = logging.getLogger("dpo")


class UnforeseenError(PipelineError):
    """An error that nobody wrote for people, in words that may be shown; the log has its traceback."""


class PlainErrors(logging.Filter):
    """Lets an error that was written for people stand in a run's log once, and without its traceback."""

    _last: PipelineError | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        error = _told(record.exc_info[1]) if record.exc_info else None
        if error is None:
            return True
        record.msg, record.args, record.exc_info = f"{type(error).__name__}: {error}", (), None
        known, self._last = error is self._last, error
        return not known


def _told(error: BaseException | None) -> PipelineError | None:
    """The error that was written for people, also where Prefect failed to tell it to its server."""
    while isinstance(error, httpx.TransportError):
        error = error.__context__
    return error if isinstance(error, PipelineError) else None


class RunLogs(logging.Handler):
    """Passes what the stages log on to the run that is under way: the task's log, or the flow's between tasks."""

    def __init__(self) -> None:
        super().__init__()
        self._flow_log = get_run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = get_run_logger()
        except MissingContextError:  # a thread that a stage started
            log = self._flow_log
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


@contextmanager
def forwarded_logs() -> Iterator[None]:
    """While it lasts, what is logged under `dpo` from INFO up appears in the run's logs."""
    handler, level, propagate = RunLogs(), _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(min(level or logging.INFO, logging.INFO))
    _log.propagate = False  # Prefect's root handler would print warnings a second time
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)
        _log.propagate = propagate


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Turns every error that is not written for people into one that is, since Prefect keeps what an error says.

    Args:
        what: a stage, or whatever else ends with the error.

    Raises:
        UnforeseenError: in place of such an error. Its traceback, without secrets, is in the log.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if (told := _told(error)) is not None:
            raise told from None
        text = outgoing("".join(traceback.format_exception(error)).rstrip("\n"))
        _log.error("%s ended by an error that was not foreseen\n%s", what, text)
        raise UnforeseenError(
            f"{what} ended by an error that was not foreseen",
            found=f"{type(error).__name__}: {error}",
            fix="the log of the run has the traceback",
        ) from None


# Prefect logs a failed run after the flow's body is over, so the filter has to outlive it.
for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(PlainErrors())
    logging.getLogger(_name).addFilter(Redacting())
