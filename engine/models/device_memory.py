"""How much memory a device has left for this process, and what a piece of work takes of it at most."""

import ctypes
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
import torch

_HOST_SHARE, _CUDA_SHARE = 0.9, 0.95  # of what is free: the rest is for other processes, and for fragmentation


class DeviceMemory(Protocol):
    """The memory of one device; all numbers are bytes."""

    @property
    def cautious(self) -> bool:
        """True where a process that takes too much is killed rather than told."""
        ...

    def standing(self) -> int:
        """What this process holds now."""
        ...

    def limit(self) -> int:
        """What this process may hold in all: what it holds now and most of what is free."""
        ...

    def peak_of(self, run: Callable[[], None]) -> int:
        """The most this process held while `run` went on, what stood before included. Raises what `run` raises."""
        ...


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a CUDA device; of the machine for every other device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


class CudaMemory:
    """A CUDA device's memory, as torch's allocator hands it out. See `DeviceMemory`."""

    cautious = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def standing(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def limit(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        standing, cached = self.standing(), torch.cuda.memory_reserved(self._device)
        share = torch.cuda.get_per_process_memory_fraction(self._device)
        return standing + int(_CUDA_SHARE * (min(free + cached, int(share * total)) - standing))

    def peak_of(self, run: Callable[[], None]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        return torch.cuda.max_memory_allocated(self._device)


class HostMemory:
    """The machine's memory, or the part of it that control groups leave to this process. See `DeviceMemory`."""

    cautious = True

    def __init__(self, process: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> None:
        self._process, self._groups = process, groups

    def standing(self) -> int:
        _trim()
        return int(psutil.Process().memory_info().rss)

    def limit(self) -> int:
        _trim()
        held = psutil.Process().memory_info()
        listing = _text(self._process / "cgroup")
        free = min([psutil.virtual_memory().available, *group_rooms(listing, self._groups)])
        # Mapped files are held and yet count as free, since the kernel can drop them: once is enough.
        return int(held.rss - getattr(held, "shared", 0) + _HOST_SHARE * max(free, 0))

    def peak_of(self, run: Callable[[], None]) -> int:
        _trim()
        try:
            (self._process / "clear_refs").write_text("5")  # Linux forgets the highest mark
        except OSError:
            return _sampled_peak(run)
        run()
        mark = re.search(r"^VmHWM:\s+(\d+) kB$", _text(self._process / "status"), re.MULTILINE)
        return int(mark[1]) * 1024 if mark else self.standing()


def _trim() -> None:
    """Gives back what glibc keeps of freed tensors: 700 MiB after a peak of 1.2 GiB, which the next one would use."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
        libc.malloc_trim(0)


def _sampled_peak(run: Callable[[], None], every_seconds: float = 0.005) -> int:
    """For systems whose highest mark cannot be set back; short peaks may be missed."""
    process, done, peak = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        peak = int(process.memory_info().rss)
        while not done.wait(every_seconds):
            peak = max(peak, int(process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak


def group_rooms(listing: str, root: Path) -> list[int]:
    """Bytes that each control group above a process still leaves it; the groups without a limit are left out.

    Args:
        listing: the text of /proc/<process>/cgroup, of version 1, 2 or both.
        root: where the control groups are mounted.
    """
    rooms = []
    for line in listing.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            mount, names = root, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = mount / path.strip("/")
        above = [each for each in (folder, *folder.parents) if each.is_relative_to(mount)]
        rooms += [room for each in above if (room := _group_room(each, *names)) is not None]
    return rooms


def _group_room(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """Limit − usage, but the cached files that count as usage and would give way."""
    numbers = [_text(folder / name).strip() for name in (limit, usage)]
    if not all(number.isdecimal() for number in numbers):  # "max", or no such group
        return None
    cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return int(numbers[0]) - int(numbers[1]) + sum(map(int, cached))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except (OSError, ValueError):  # a name no file can have
        return ""
