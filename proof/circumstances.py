"""A clock that is wrong, several runs at once, memory that does not suffice, and a remake that is killed."""

import itertools
import json
import re
import signal
import time
from typing import Any

from proof.orders import Ended, Strike
from proof.places import Place, redone
from proof.profile import NAMES
from proof.resuming import Resuming, gone_on_from, saved
from proof.table import ELSEWHERE, Check, verdict
from proof.workshop import Workshop

_DAY_SECONDS = 86_400.0
_LARGE_STEPS = ("--set", "train.batch_size=31", "--set", "train.epochs=6", "--set", "runtime.score_batch_tokens=256")
_WITH_A_SERVER = "tests/flows/test_recovery.py, run by `make test-slow`"
_PLAN = re.compile(r"memory plan: ([\d.]+) (MiB|GiB) of")


def prove_clock(shop: Workshop) -> list[Check]:
    """A clock moved back and forward between the attempts of one run."""
    return [
        _clock(shop, "a clock moved back", [0.0, -_DAY_SECONDS, -2 * _DAY_SECONDS]),
        _clock(shop, "a clock moved forward", [0.0, _DAY_SECONDS, 2 * _DAY_SECONDS]),
        _clock(shop, "a clock moved to and fro", [_DAY_SECONDS, -_DAY_SECONDS, _DAY_SECONDS]),
    ]


def _clock(shop: Workshop, name: str, offsets: list[float]) -> Check:
    place = shop.place(name.replace(" ", "-"), shop.lanes[0])
    problems, sealed, resuming = list[str](), dict[str, bytes](), Resuming(place)
    for offset, stage in zip(offsets, ("sft", "train", "evaluate"), strict=True):
        half = max(1, shop.baseline.census[stage, "after fsync"] // 2)
        ended = place.run(strike=Strike(stage, "after fsync", half), clock_seconds=offset, traced=True)
        problems += [] if ended.code == -signal.SIGKILL else [f"not killed in {stage}: {ended.told}"]
        problems += [*place.torn(), *redone(sealed, place.manifests()), *resuming.after(ended)]
        sealed = place.manifests()
    ended = place.run(clock_seconds=-offsets[-1], traced=True)
    problems += [*resuming.after(ended), *([] if ended.code == 0 else [ended.told])]
    problems += [] if resuming.left >= 2 else ["a kill in sft or train left nothing to go on from"]
    problems += place.finish(shop.baseline.outcome) + redone(sealed, place.manifests())
    return verdict(name, problems, f"{resuming.left} of 3 kills left something to go on from, and it was gone on from")


def prove_together(shop: Workshop) -> list[Check]:
    """Several runs of one profile at once, and two of which the one at work is killed."""
    return [_together(shop, 2), _together(shop, 4), _one_of_two_killed(shop)]


def _together(shop: Workshop, count: int) -> Check:
    place = shop.place(f"together-{count}", shop.lanes[0])
    orders = [place.order() for _ in range(count)]
    started = [place.lane.start(order) for order in orders]
    ended = [place.lane.wait(pid, order) for pid, order in zip(started, orders, strict=True)]
    problems = [each.told for each in ended if each.code != 0]
    for stage in NAMES:
        made = sum(bool(re.search(rf"^{stage} +(made|resumed) ", each.err, re.MULTILINE)) for each in ended)
        problems += [] if made == 1 else [f"{stage} was made {made} times"]
    return verdict(
        f"{count} runs at once", [*problems, *place.finish(shop.baseline.outcome)], "each stage was made once"
    )


def _one_of_two_killed(shop: Workshop) -> Check:
    place, alike = (shop.place(name, shop.lanes[0]) for name in ("killed-of-two", "killed-alone"))
    strike = Strike("train", "after fsync", shop.baseline.census["train", "after fsync"] // 2)
    alike.run(strike=strike)
    left = saved(alike).step  # of two, the other goes on at once: there is no time to look
    first, second = place.order(strike=strike), place.order()
    pids = [place.lane.start(first)]
    while place.at_work() != "train" and place.lane.is_running(pids[0]):
        time.sleep(0.002)
    pids.append(place.lane.start(second))
    died, lived = place.lane.wait(pids[0], first), place.lane.wait(pids[1], second)
    problems = [] if died.code == -signal.SIGKILL else [f"the first: {died.told}"]
    problems += [] if lived.code == 0 else [f"the second: {lived.told}"]
    if not left or gone_on_from(lived, "train") != left:
        problems.append(f"the second did not go on from the checkpoint at step {left}")
    problems += place.finish(shop.baseline.outcome)
    return verdict(
        "the one at work of two killed",
        problems,
        f"the other went on from the checkpoint, which was that of step {left}",
    )


def prove_memory(shop: Workshop) -> list[Check]:
    """Memory of which the probe finds too little for the micro-batch asked for, and kills under that limit.

    The stages above are made before, so that every training begins in a process that has done nothing else. What fits
    is measured, and may be another number the next time: a run that asks for that number is what is compared with.
    """
    ready = shop.place("memory", shop.lanes[0], *_LARGE_STEPS)
    ready.run("run", "--until", "reference")
    free = ready.copy("memory-free")
    ended = free.run()
    if ended.code != 0:
        return [verdict("too little memory", [ended.told], "")]
    killed = ready.copy("memory-killed", "--set", f"runtime.memory_limit_gib={_limit_gib(free, ended):.6f}")
    problems, resuming = list[str](), Resuming(killed)
    for nth in (4, 3):
        ended = killed.run(strike=Strike("train", "after rename", nth), traced=True)
        problems += [] if ended.code == -signal.SIGKILL else [f"not killed: {ended.told}"]
        problems += [*killed.torn(), *resuming.after(ended)]
    ended = killed.run(traced=True)
    lowered = _train(killed)["micro_batch_tokens"]
    problems += [] if 0 < lowered < _train(free)["micro_batch_tokens"] else ["the probe lowered nothing"]
    alone = ready.copy("memory-alone", "--set", f"runtime.micro_batch_tokens={lowered}")
    problems += [each.told for each in [alone.run()] if each.code != 0]
    problems += [*resuming.after(ended), *killed.finished(ended, alone.outcome())]
    return [verdict("too little memory", problems, f"{lowered} tokens at once after kills as before, the same bytes")]


def _limit_gib(place: Place, ended: Ended) -> float:
    """A limit that leaves half of what the largest micro-batch takes."""
    whole = {unit: float(count) for count, unit in _PLAN.findall(ended.err)[-1:]}
    planned = whole.get("MiB", whole.get("GiB", 0.0) * 1024) / 1024
    return planned - 0.5 * float(_train(place)["largest_micro_batch_bytes"]) / 2**30


def _train(place: Place) -> dict[str, Any]:
    """The numbers that training recorded; empty when it is not sealed."""
    manifests = [json.loads(text) for name, text in place.manifests().items() if name.startswith("train/")]
    return dict(manifests[0]["metrics"]) if manifests else {"micro_batch_tokens": 0}


def prove_remake(shop: Workshop) -> list[Check]:
    """`--force` killed at every rename and removal of a stage that is sealed: the old artifact or the new is there."""
    place = shop.place("remade", shop.lanes[0])
    place.run()
    problems, kills = list[str](), 0
    for point in ("before rename", "after rename", "removing"):
        for nth in itertools.count(1):
            forced = ("run", "--only", "subsample", "--force")
            ended = place.run(*forced, strike=Strike("subsample", point, nth))
            if ended.code == 0:
                break
            if ended.code != -signal.SIGKILL:
                problems.append(f"{point} {nth}: not killed: {ended.told}")
                break
            kills += 1
            ended = place.run()
            told = [*place.torn(), *place.outcome().differences(shop.baseline.outcome)]
            problems += [f"{point} {nth}: {each}" for each in (told if ended.code == 0 else [ended.told])]
    problems += [] if kills else ["no kill struck"]
    return [verdict("a forced remake killed", problems, f"{kills} kills: a whole artifact was there after each")]


def told_elsewhere() -> list[Check]:
    """What is tested with a server of its own, and not here."""
    return [
        Check("the Prefect server killed in the midst", ELSEWHERE, _WITH_A_SERVER),
        Check("kill -9 of a deployment's run", ELSEWHERE, _WITH_A_SERVER),
    ]
