"""Locks across processes that name their holder and that the kernel frees when the holder dies."""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import TransientError
from engine.processes import user

_GRACE_SECONDS = 0.2  # whoever asks for the holder of a free lock holds it for a moment
_DAY = 86_400.0
_log = logging.getLogger("dpo")


class LockFolderError(OSError):
    """The folder of a lock cannot be written."""


@contextmanager
def holding(path: Path, wait_seconds: float, what: str) -> Iterator[str | None]:
    """Holds the lock at `path` while `what` is being made. Says so when it has to wait.

    Yields:
        Whom it waited for, in words; None when it did not have to wait.

    Raises:
        TransientError: somebody else still holds it after `wait_seconds`; the message names them.
        LockFolderError: the lock's file cannot be written.
    """
    owner = _owner(path)
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _acquire(lock, owner, wait_seconds, what)
        owner.write_text(json.dumps(_self()), "utf-8")
    except OSError as error:
        lock.release()
        raise LockFolderError(*error.args) from error
    try:
        yield before
    finally:
        _forget(owner)
        lock.release()


def holder(path: Path) -> str | None:
    """Who holds the lock at `path` now, in words; None when nobody does. Takes nothing that is being held."""
    owner = _owner(path)
    lock = FileLock(path)
    try:
        if not owner.is_file():
            return None
        lock.acquire(timeout=0)
    except Timeout:
        return _told(owner)
    except OSError:  # a folder that may only be read: nothing can be made there either
        return None
    lock.release()  # its holder died without taking its name away
    return None


def age(since: float, now: float) -> str:
    """How long ago a moment was, in words; a clock that was set back makes it `just now` and never a negative age."""
    minutes = int((now - since) // 60)
    if minutes < 1:
        return "just now"
    return f"{minutes} min ago" if minutes < 120 else f"{minutes // 60} h ago"


def _acquire(lock: FileLock, owner: Path, wait_seconds: float, what: str) -> str | None:
    try:
        lock.acquire(timeout=0)
        return None
    except Timeout:
        before = _told(owner)
        if wait_seconds > 0:
            _log.warning("%s is being made by %s; waiting up to %.0f s", what, before, wait_seconds)
    try:
        lock.acquire(timeout=max(wait_seconds, _GRACE_SECONDS))
    except Timeout:
        raise TransientError(
            f"another run is making {what}",
            found=_told(owner),
            where=str(lock.lock_file),
            fix="wait for it, or stop it, and run again",
        ) from None
    return before if wait_seconds > 0 else None


def _owner(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _self() -> dict[str, object]:
    return {"pid": os.getpid(), "user": user(), "host": platform.node(), "since": time.time()}


def _forget(owner: Path) -> None:
    try:
        owner.unlink(missing_ok=True)
    except OSError as error:  # the lock is free all the same, and what it guarded is done
        _log.debug("%s was not removed: %s", owner, error)


def _told(owner: Path) -> str:
    try:
        told = json.loads(owner.read_text("utf-8"))
        since, now = float(told["since"]), time.time()
        if not math.isfinite(since):
            raise ValueError("no moment")
        form = "%H:%M" if abs(now - since) < _DAY else "%F %H:%M"
        began = time.strftime(form, time.localtime(since))
        return f"process {told['pid']} of {told['user']} on {told['host']} since {began}, {age(since, now)}"
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return "an unknown holder"
