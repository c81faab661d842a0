"""What all faults share: a run that was left alone, the lanes, and the folder below which everything lies."""

import json
import os
import queue
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from proof.lane import ROOT, Lane
from proof.places import Outcome, Place
from proof.profile import environment
from proof.table import Check, verdict

T = TypeVar("T")
R = TypeVar("R")


class BaselineError(Exception):
    """The run without any fault does not succeed, so nothing can be held against it."""


@dataclass(frozen=True)
class Baseline:
    """A run that was left alone.

    Attributes:
        outcome: what it left.
        census: how often each stage comes to each point, by (stage, point).
        seconds: how long each stage takes.
        size_bytes: of all it left, in whole blocks; its pages apart, for want of which no run fails.
        files: how many files and folders it left.
    """

    outcome: Outcome
    census: Counter[tuple[str, str]]
    seconds: dict[str, float]
    size_bytes: int
    files: int


@dataclass(frozen=True)
class Workshop:
    """Where the faults are brought about.

    Attributes:
        seed: of everything that is drawn.
        alone: the place of the run that was left alone; whole, and not to be changed.
    """

    folder: Path
    seed: int
    lanes: Sequence[Lane]
    baseline: Baseline
    alone: Place

    def each(self, work: Callable[[Lane, T], R], items: Sequence[T]) -> list[R]:
        """Does the work for every item, as many at once as there are lanes; the results in the items' order."""
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self.lanes:
            free.put(lane)

        def one(item: T) -> R:
            lane = free.get()
            try:
                return work(lane, item)
            finally:
                free.put(lane)

        with ThreadPoolExecutor(len(self.lanes)) as pool:
            return list(pool.map(one, items))

    def place(self, name: str, lane: Lane, *settings: str) -> Place:
        """A new place below the folder."""
        return Place.new(self.folder / name, lane, *settings)


@contextmanager
def workshop(folder: Path, *, seed: int, jobs: int, sabotage: Path | None = None) -> Iterator[Workshop]:
    """A workshop with `jobs` lanes, and the run that was left alone made in it.

    Raises:
        BaselineError: that run fails.
    """
    hub = folder / "hub"
    hub.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(hub, sabotage)) for _ in range(jobs)]
        alone = Place.new(folder / "alone", lanes[0])
        yield Workshop(folder, seed, lanes, _measure(alone), alone)


def same_as_a_process(shop: Workshop) -> list[Check]:
    """That an attempt here leaves the bytes of the command `dpo` in a process of its own; else all this says little."""
    place = shop.place("process", shop.lanes[0])
    command, order = Path(sys.executable).with_name("dpo"), place.order()
    settings = environment(shop.folder / "hub") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([command, *order.words], cwd=place.folder, env=settings, capture_output=True, text=True)
    problems = place.outcome().differences(shop.baseline.outcome) if done.returncode == 0 else [done.stderr[-300:]]
    return [verdict("a process of its own", problems, "leaves the same bytes as the attempts here")]


def _measure(place: Place) -> Baseline:
    census = place.logs / "census.json"
    ended = place.run(census=str(census))
    if ended.code != 0:
        raise BaselineError(f"the run without a fault ended with {ended.told}")
    counts = {(stage, point): count for stage, point, count in json.loads(census.read_text("utf-8"))}
    spent = {name.partition("/")[0]: json.loads(text)["seconds"] for name, text in place.manifests().items()}
    left = {path: path.stat() for path in place.folder.rglob("*")}
    needed = sum(found.st_blocks * 512 for path, found in left.items() if path.suffix != ".html")
    return Baseline(place.outcome(), Counter(counts), spent, needed, len(left))


def cores() -> int:
    """How many there are for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
