"""The line to the Prefect server: telling it something holds no stage up, and a run that lost it ends knowingly."""

import logging
import time
from collections.abc import Callable
from functools import cached_property

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from engine.errors import PipelineError

ANSWER_SECONDS = 3.0  # what a server that hangs may cost a stage, once in every silence
SILENCE_SECONDS = 30.0  # how long a server that did not answer is left alone
RETURN_SECONDS = 10.0  # how long the end of a run waits for a server that is starting again
_log = logging.getLogger("dpo")


class ServerGoneError(PipelineError):
    """The stages are made and the server that was to be told does not answer."""


class Line:
    """Whether the server answers, as far as one run knows.

    Attributes:
        lost_during: the stage at which it was first found not to answer; empty while it always did.
    """

    def __init__(self) -> None:
        self.lost_during = ""
        self._down = False
        self._silent_until = 0.0

    def tell(self, what: str, action: Callable[[], object], *, during: str = "") -> bool:
        """Does `action`, which speaks to the server, once, if the server answers; False when it was not done.

        Trouble becomes a warning that names `what`. Prefect's own client would try for a minute, every time.
        """
        if time.monotonic() < self._silent_until or not self.answers(during):
            return False
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                action()
        except httpx.TransportError as error:
            self._lost(error, during)
            return False
        except Exception as error:
            _log.warning("could not publish %s: %s: %s", what, type(error).__name__, error)
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            return False
        return True

    def answers(self, during: str = "") -> bool:
        """Asks the server now, within seconds. Losing it and finding it again is logged, once each."""
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            trouble = self._client.api_healthcheck()
        if trouble is not None:
            self._lost(trouble, during)
        elif self._down:
            self._down = False
            _log.info("the Prefect server answers again")
        return not self._down

    def answers_at_last(self) -> bool:
        """As `answers`, with patience for a server that is being restarted."""
        deadline = time.monotonic() + RETURN_SECONDS
        while not self.answers("the end of the run"):
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return True

    def gone(self) -> ServerGoneError:
        """The error to end with when all stages are over and nobody can be told."""
        return ServerGoneError(
            f"the Prefect server stopped answering during {self.lost_during or 'the run'}; "
            "all stages finished and are sealed",
            where=str(PREFECT_API_URL.value()),
            fix="start the server again (make deploy), then run the same command again: everything is reused",
        )

    def _lost(self, trouble: Exception, during: str) -> None:
        self._silent_until = time.monotonic() + SILENCE_SECONDS
        if not self._down:
            self.lost_during = during
            _log.warning("the Prefect server does not answer (%s); the stages go on without it", trouble)
        self._down = True

    @cached_property
    def _client(self) -> SyncPrefectClient:
        return get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True)
