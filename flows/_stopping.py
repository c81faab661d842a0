"""Being terminated as an end like Ctrl-C, so that what a command had begun is put in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

TERMINATED = 143


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit; only the main thread of a process can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)
