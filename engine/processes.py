"""Who a process is, so that another one can tell later whether it still runs."""

import getpass
import os
import platform
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START = 0, 19  # fields of /proc/<pid>/stat behind the name, which may hold spaces itself


@dataclass(frozen=True)
class Process:
    """One process of one host.

    Attributes:
        host: the host's name.
        born: tells it from another process that has its number: the boot of its machine, its space of numbers, and
            its beginning in ticks since that boot, which no setting of the clock moves. Empty where that is not known.
    """

    pid: int
    host: str
    born: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    """The process that asks."""
    boot, space = _place()
    found = _stat(os.getpid())
    return Process(os.getpid(), platform.node(), f"{boot} {space} {found[_START]}" if boot and found else "")


def is_gone(process: Process) -> bool:
    """Whether it surely runs no more. False for a process of another host or container, and where nobody can tell."""
    if process.host != platform.node() or process.born.count(" ") != 2:
        return False
    here, (boot, space, start) = _place(), process.born.split(" ")
    if not here[0] or (boot == here[0] and space != here[1]):
        return False
    if boot != here[0]:  # the machine was started anew since
        return True
    found = _stat(process.pid)
    return found is None or found[_START] != start or found[_STATE] in "ZX"


def user() -> str:
    """The name of who runs this process, or a number where no name is known."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an id without an account, as containers have it
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "somebody"


def _place() -> tuple[str, str]:
    """The boot of the machine and the space of process numbers that this process sees; empty where not told."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return boot, (_PROC / "self/ns/pid").readlink().name
    except (OSError, ValueError):
        return "", ""


def _stat(pid: int) -> list[str] | None:
    """The fields that the kernel tells of a process; None when there is none of that number."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _START else None
