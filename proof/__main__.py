"""The command `python -m proof`: brings every fault about and prints what came of it. Exits with 1 for anything red."""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from proof.circumstances import prove_clock, prove_memory, prove_remake, prove_together, told_elsewhere
from proof.damage import prove_damage
from proof.disk import INSIDE, prove_disk, way_to_mount
from proof.kills import ALL, Kills, cells, draw, prove_kills
from proof.lane import LaneError
from proof.profile import NAMES
from proof.table import RED, Check, grid, listing, summary
from proof.workshop import BaselineError, Workshop, cores, same_as_a_process, workshop

OTHERS: dict[str, Callable[[Workshop], list[Check]]] = {
    "damage": prove_damage,
    "disk": prove_disk,
    "clock": prove_clock,
    "together": prove_together,
    "memory": prove_memory,
    "remake": prove_remake,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the faults that are asked for. Returns 1 when anything is red, 2 when there is nothing to compare with."""
    given = parser().parse_args(arguments)
    only = given.only or ["kills", *OTHERS]
    if "disk" in only and INSIDE not in os.environ and (way := way_to_mount()):
        words = [*way, sys.executable, "-m", "proof", *(sys.argv[1:] if arguments is None else arguments)]
        os.execvpe(way[0], words, {**os.environ, INSIDE: "1"})
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    try:
        folder = _new_folder(given.folder)
    except OSError as error:
        return _nothing(f"no folder can be made: {error}")
    print(f"seed {seed}, {given.jobs} at once, below {folder}", flush=True)
    try:
        with workshop(folder, seed=seed, jobs=given.jobs) as shop:
            checks = _prove(shop, only, given.kills)
    except (BaselineError, LaneError, OSError) as error:
        return _nothing(f"{error}\nwhat was left is kept in {folder}")
    if any(check.state == RED for check in checks):
        print(f"what was left is kept in {folder}; the same faults again: --seed {seed}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    top = argparse.ArgumentParser(
        prog="python -m proof", description="Kills, damages and starves runs of a tiny profile."
    )
    top.add_argument("--kills", type=_count, default=200, help="how many runs are killed (default: %(default)s)")
    top.add_argument("--seed", type=int, help="of all that is drawn; printed, so that it can be had again")
    top.add_argument("--jobs", type=_count, default=cores(), help="work places at once (default: the cores)")
    top.add_argument("--only", nargs="+", choices=["kills", *OTHERS], help="these faults and no others")
    top.add_argument("--folder", type=Path, help="below which everything is made (default: that for temporary files)")
    return top


def _count(text: str) -> int:
    count = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is wanted, not {text!r}")
    return count


def _nothing(why: str) -> int:
    print(f"error: nothing can be proven: {why}", file=sys.stderr)
    return 2


def _new_folder(inside: Path | None) -> Path:
    """Raises OSError."""
    if inside:
        inside.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="dpo-proof-", dir=inside))


def _prove(shop: Workshop, only: Sequence[str], kills: int) -> list[Check]:
    began = time.monotonic()
    checks = same_as_a_process(shop)
    if "kills" in only:
        made = prove_kills(shop, draw(kills, shop.seed, shop.baseline.census))
        print(_table(made, shop), end="\n\n", flush=True)
        checks += made.checks
    for name, prove in OTHERS.items():
        if name in only:
            checks += _checked(name, prove, shop)
            print(f"{name}: done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    checks += told_elsewhere() if set(OTHERS) <= set(only) else []
    print(listing(checks))
    print(f"\n{summary(checks)}, in {time.monotonic() - began:.0f} s")
    return checks


def _checked(name: str, prove: Callable[[Workshop], list[Check]], shop: Workshop) -> list[Check]:
    """What came of these faults; red in one line when they could not be brought about."""
    try:
        return prove(shop)
    except (LaneError, OSError, subprocess.SubprocessError) as error:
        return [Check(name, RED, f"could not be tried: {error}")]


def _table(made: Kills, shop: Workshop) -> str:
    return grid(made.hits, NAMES, ALL, set(cells(shop.baseline.census)))


if __name__ == "__main__":
    sys.exit(main())
