"""Kills: drawn evenly over the stages and over the points inside them, many in a row in one place."""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from proof.lane import Lane, LaneError
from proof.orders import Ended, Strike
from proof.places import Place, redone
from proof.points import POINTS
from proof.profile import NAMES
from proof.resuming import Resuming
from proof.table import Check, verdict
from proof.workshop import Workshop

TIMED = {"SIGKILL, timed": signal.SIGKILL, "SIGTERM, timed": signal.SIGTERM}
ALL = (*POINTS, *TIMED)
RESUMING = frozenset({"sft", "reference", "train"})  # they go on from where they were, so later kills have less to hit
_TRIES, _MOST_IN_A_STAGE = 10, 4


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        share: how far into the stage, between 0 and 1: of its time, or of the operations of that kind.
        tries: how often it came too late.
    """

    stage: str
    point: str
    share: float
    tries: int = 0


def cells(census: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Every (stage, point) that can be hit, so that any beginning of the list is even over stages and over points.

    Stages and points are counted up together: as their numbers share no divisor, every pair is met once.
    """
    turns = range(len(NAMES) * len(ALL))
    met = [(NAMES[turn % len(NAMES)], ALL[turn % len(ALL)]) for turn in turns]
    return [cell for cell in met if cell[1] in TIMED or census.get(cell, 0)]


def draw(count: int, seed: int, census: Mapping[tuple[str, str], int]) -> list[Kill]:
    """So many kills, as even over the cells as their number allows; the seed decides where in a cell each strikes."""
    chance = random.Random(seed)
    return [Kill(*cell, chance.random()) for cell in itertools.islice(itertools.cycle(cells(census)), count)]


@dataclass
class Waiting:
    """The kills still to be made, shared by the lanes.

    Attributes:
        hits: kills made so far, by the (stage, point) where they struck.
        left: after how many of them there was something to go on from.
        missed: those that never struck, however often they were tried.
    """

    kills: deque[Kill]
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: int = 0
    missed: list[Kill] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, stage: str, most: int) -> list[Kill]:
        """Up to `most` kills inside that stage."""
        with self._lock:
            taken = list(itertools.islice((kill for kill in self.kills if kill.stage == stage), most))
            for kill in taken:
                self.kills.remove(kill)
            return taken

    def put_back(self, kill: Kill, *, missed: bool) -> None:
        """For another place; one that came too late strikes earlier there."""
        with self._lock:
            if missed:
                kill = replace(kill, share=kill.share / 2, tries=kill.tries + 1)
            (self.missed if kill.tries >= _TRIES else self.kills).append(kill)

    def hit(self, stage: str, point: str) -> None:
        """Counts one."""
        with self._lock:
            self.hits[stage, point] += 1

    def leave(self, count: int) -> None:
        """Counts those of one place that left something to go on from."""
        with self._lock:
            self.left += count


@dataclass(frozen=True)
class Kills:
    """What came of the kills: how many struck, by (stage, point), and whether that was survived."""

    hits: Counter[tuple[str, str]]
    checks: list[Check]


def prove_kills(shop: Workshop, kills: Sequence[Kill]) -> Kills:
    """Kills in chains: one after the other in a place, which is left to end then and held against the run alone."""
    waiting = Waiting(deque(kills))
    most = max(1, min(_MOST_IN_A_STAGE, len(kills) // (len(NAMES) * len(shop.lanes))))
    numbers = itertools.count(1)

    def chains(lane: Lane, _: int) -> list[str]:
        problems = []
        while waiting.kills:
            place = shop.place(f"kills-{next(numbers)}", lane)
            try:
                problems += [f"{place.folder.name}: {each}" for each in _chain(place, waiting, most, shop)]
            except LaneError as error:  # the other lanes take what is left
                return [*problems, f"{place.folder.name}: {error}"]
        return problems

    problems = [each for found in shop.each(chains, range(len(shop.lanes))) for each in found]
    problems += [f"no {kill.point} was reached in {kill.stage}" for kill in waiting.missed]
    problems += [f"{len(waiting.kills)} kills were not made"] if waiting.kills else []
    made = sum(waiting.hits.values())
    problems += [] if made else ["no kill struck"]
    seen = f"{made} kills: nothing torn, nothing redone, the same bytes in the end; "
    seen += f"{waiting.left} of them left something to go on from, and all of that was gone on from"
    return Kills(waiting.hits, [verdict("kills", problems, seen)])


def _chain(place: Place, waiting: Waiting, most: int, shop: Workshop) -> Iterator[str]:
    sealed: dict[str, bytes] = {}
    resuming = Resuming(place)
    for stage in NAMES:
        left = 1.0
        for kill in waiting.take(stage, most):
            if place.is_sealed(stage):
                waiting.put_back(kill, missed=False)
                continue
            share = kill.share * left
            ended, hit = _attempt(place, replace(kill, share=share), shop)
            waiting.hit(hit, kill.point) if hit else None
            if hit != stage:
                waiting.put_back(kill, missed=True)
            left = left - share if stage in RESUMING else left
            yield from _problems(place, kill, ended, sealed, resuming)
            sealed = place.manifests()
    waiting.leave(resuming.left)
    ended = place.run(traced=True)
    yield from [*resuming.after(ended), *place.finished(ended, shop.baseline.outcome)]
    yield from redone(sealed, place.manifests())


def _problems(place: Place, kill: Kill, ended: Ended, sealed: dict[str, bytes], resuming: Resuming) -> Iterator[str]:
    where = f"{kill.point} at {kill.share:.3f} of {kill.stage}"
    if ended.code not in (0, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
        yield f"{where}: {ended.told}"
    if "Traceback" in ended.err:
        yield f"{where}: a traceback"
    told = [*place.torn(), *redone(sealed, place.manifests()), *resuming.after(ended)]
    yield from (f"{where}: {each}" for each in told)


def _attempt(place: Place, kill: Kill, shop: Workshop) -> tuple[Ended, str]:
    """How it ended, and the stage in which the kill struck; no stage when it came too late."""
    if kill.point in TIMED:
        return _stopped_from_outside(place, kill, shop.baseline.seconds[kill.stage])
    nth = 1 + int(kill.share * shop.baseline.census[kill.stage, kill.point])
    ended = place.run(strike=Strike(kill.stage, kill.point, nth), traced=True)
    return ended, kill.stage if ended.code == -signal.SIGKILL else ""


def _stopped_from_outside(place: Place, kill: Kill, seconds: float) -> tuple[Ended, str]:
    order = place.order(beacon=True, traced=True)
    pid = place.lane.start(order)
    while place.lane.is_running(pid) and kill.stage not in order.begun():
        time.sleep(0.001)
    time.sleep(kill.share * seconds)
    os.kill(pid, TIMED[kill.point])
    ended, begun = place.lane.wait(pid, order), order.begun()
    struck = ended.code != 0 and begun and not place.is_sealed(begun[-1])
    return ended, begun[-1] if struck else ""
