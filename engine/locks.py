"""Locks across processes that name their holder and that the kernel frees when the holder dies."""

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import TransientError

_log = logging.getLogger("dpo")


class LockFolderError(OSError):
    """The folder of a lock cannot be written."""


@contextmanager
def holding(path: Path, wait_seconds: float, what: str) -> Iterator[None]:
    """Holds the lock at `path` while `what` is being made. Says so when it has to wait.

    Raises:
        TransientError: somebody else still holds it after `wait_seconds`; the message names them.
        LockFolderError: the lock's file cannot be written.
    """
    owner = path.with_name(f"{path.name}.owner")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, owner, wait_seconds, what)
        owner.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}\n", "utf-8")
    except OSError as error:
        lock.release()
        raise LockFolderError(*error.args) from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str | None:
    """Who holds the lock at `path` now, in words; None when nobody does. Takes nothing that is being held."""
    owner = path.with_name(f"{path.name}.owner")
    if not owner.is_file():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _holder(owner)
    except OSError:  # a folder that may only be read: nothing can be made there either
        return None
    lock.release()  # its holder died without taking its name away
    return None


def _acquire(lock: FileLock, owner: Path, wait_seconds: float, what: str) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        if wait_seconds > 0:
            _log.warning("%s is being made by %s; waiting up to %.0f s", what, _holder(owner), wait_seconds)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise TransientError(
            f"another run is making {what}",
            found=_holder(owner),
            where=str(lock.lock_file),
            fix="wait for it, or stop it, and run again",
        ) from None


def _holder(owner: Path) -> str:
    try:
        return owner.read_text("utf-8").strip()
    except OSError:
        return "an unknown holder"
