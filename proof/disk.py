"""A disk that is full, and one that may only be read: a small file system in memory, mounted for one place.

Mounting wants a mount namespace of its own, which `python -m proof` enters before it begins where it may.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from proof.orders import Ended, Strike
from proof.places import Place, redone
from proof.table import NOT_RUN, Check, verdict
from proof.workshop import Workshop

INSIDE = "DPO_PROOF_MAY_MOUNT"  # set once the process is in a namespace of its own
_WAYS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
_SHARES = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)  # of what a run needs, that are free
_BALLAST = "ballast"


def way_to_mount() -> list[str]:
    """The words that start a command where it may mount, or none when this machine lets nobody do so."""
    for way in _WAYS:
        try:
            if subprocess.run([*way, "mount", "-t", "tmpfs", "proof", "/mnt"], capture_output=True).returncode == 0:
                return way
        except OSError:
            continue
    return []


def prove_disk(shop: Workshop) -> list[Check]:
    """Fills a disk at several points and makes one read-only, and has the next run go on when that is over."""
    faults = {
        "a full disk": _full,
        "a disk without a free inode": _without_inodes,
        "a read-only disk in the midst": _read_only_in_the_midst,
        "a read-only disk when all is made": _read_only_when_done,
    }
    if INSIDE not in os.environ:
        return [
            Check(name, NOT_RUN, "this machine lets nobody mount: neither as root nor by unshare") for name in faults
        ]
    return [fault(name, shop) for name, fault in faults.items()]


def _full(name: str, shop: Workshop) -> Check:
    need = shop.baseline.size_bytes

    def fill(place: Place) -> list[str]:
        problems, sealed = list[str](), dict[str, bytes]()
        for share in _SHARES:
            _leave_free(place.folder, int(share * need))
            problems += [f"at {share:.0%}: {each}" for each in _refused(place, place.run(), sealed)]
            sealed = place.manifests()
        (place.folder / _BALLAST).unlink()
        return [*problems, *place.finish(shop.baseline.outcome), *redone(sealed, place.manifests())]

    problems = _mounted(shop, "full", f"size={2 * need + 2**22}", fill)
    return verdict(name, problems, f"{len(_SHARES)} times full: said so, nothing torn; with room again the same bytes")


def _without_inodes(name: str, shop: Workshop) -> Check:
    def starve(place: Place) -> list[str]:
        problems = _refused(place, place.run(), {})
        sealed = place.manifests()
        _mount("-o", f"remount,nr_inodes={shop.baseline.files * 4}", place.folder)
        return [*problems, *place.finish(shop.baseline.outcome), *redone(sealed, place.manifests())]

    problems = _mounted(shop, "inodes", f"nr_inodes={shop.baseline.files // 2}", starve)
    return verdict(name, problems, "said so, nothing torn; with room again the same bytes")


def _read_only_in_the_midst(name: str, shop: Workshop) -> Check:
    strike = Strike("train", "after fsync", shop.baseline.census["train", "after fsync"] // 2)

    def close(place: Place) -> list[str]:
        ended, sealed = place.run(strike=strike), place.manifests()
        problems = [] if ended.code == -signal.SIGKILL else [f"not killed: {ended.told}"]
        _mount("-o", "remount,ro", place.folder)
        problems += _refused(place, place.run(), sealed)
        _mount("-o", "remount,rw", place.folder)
        return [*problems, *place.finish(shop.baseline.outcome), *redone(sealed, place.manifests())]

    problems = _mounted(shop, "read-only", "size=50%", close)
    return verdict(name, problems, "said so, nothing lost; writable again the same bytes")


def _read_only_when_done(name: str, shop: Workshop) -> Check:
    def close(place: Place) -> list[str]:
        problems = place.finish(shop.baseline.outcome)
        sealed = place.manifests()
        _mount("-o", "remount,ro", place.folder)
        ended = place.run()
        problems += [] if ended.code == 0 else [ended.told]
        return [*problems, *redone(sealed, place.manifests()), *place.outcome().differences(shop.baseline.outcome)]

    return verdict(name, _mounted(shop, "finished", "size=50%", close), "everything is reused")


def _refused(place: Place, ended: Ended, sealed: dict[str, bytes]) -> list[str]:
    """What is wrong with how a run took it that it cannot write."""
    problems = [*place.torn(), *redone(sealed, place.manifests())]
    if ended.code != 1 or "error:" not in ended.err or "fix:" not in ended.err:
        problems.append(f"no clear error: {ended.told}")
    return [*problems, "a traceback"] if "Traceback" in ended.err else problems


def _mounted(shop: Workshop, name: str, options: str, work: Callable[[Place], list[str]]) -> list[str]:
    """The problems of what is done in a place on a file system of its own, of which a copy is kept where it has any.

    Raises:
        subprocess.CalledProcessError: it cannot be mounted.
    """
    folder = shop.folder / name
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", options, "proof", folder)
    try:
        problems = work(shop.place(name, shop.lanes[0]))
        if problems:
            shutil.copytree(folder, shop.folder / f"{name}.left", ignore=shutil.ignore_patterns(_BALLAST))
        return problems
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def _leave_free(folder: Path, count: int) -> None:
    """Writes a file that leaves `count` bytes free."""
    ballast = folder / _BALLAST
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        for _ in range((shutil.disk_usage(folder).free - count) // 4096):
            file.write(bytes(4096))
