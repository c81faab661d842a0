"""Flipped bytes and cut files: one of every kind that lies below a place, whatever it is for."""

import itertools
import random
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proof.conditions import as_shown
from proof.lane import Lane
from proof.orders import Strike
from proof.places import Place, redone
from proof.profile import NAMES, ROOTS
from proof.table import Check, verdict
from proof.workshop import Workshop

FLIP, EMPTY, HALF = "a flipped byte", "cut to nothing", "cut to half"
_NAMES = (
    (re.compile(r"events\.out\.tfevents.*"), "events"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "KEY"),
    (re.compile(r"\d{8}-\d{6}-[\w.-]+"), "RUN"),
    (re.compile(r"\d{2,}"), "N"),
)
_READERS = {"scores": "reference"}
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_numbers = itertools.count(1)
_TRIES = 4
_STOPS = (
    ("tokenize", 0.5),
    ("sft", 0.5),
    ("sft", 1.0),
    ("reference", 0.5),
    ("reference", 1.0),
    ("train", 0.5),
    ("train", 1.0),
)


@dataclass(frozen=True)
class Damage:
    """What is done to one file."""

    file: Path
    what: str

    def do(self, chance: random.Random) -> None:
        """Writes the file anew, damaged, under the same inode."""
        whole = bytearray(self.file.read_bytes())
        if self.what == FLIP:
            whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        self.file.write_bytes(whole[: {FLIP: len(whole), EMPTY: 0, HALF: len(whole) // 2}[self.what]])


def kind(path: Path) -> str:
    """The path with everything that varies from run to run replaced, so that files of a kind have one name."""
    text = path.as_posix()
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    return text


def one_of_each(folder: Path) -> dict[str, Path]:
    """A file of every kind below the roots of a place, by kind. Empty files hold nothing to damage."""
    files = sorted(path for root in ROOTS for path in (folder / root).rglob("*") if path.is_file())
    return {kind(path.relative_to(folder)): path for path in files if path.stat().st_size}


def prove_damage(shop: Workshop) -> list[Check]:
    """Damages what a finished run left and what interrupted ones left, and has the next run cope with it."""
    stopped = shop.each(lambda lane, stop: _interrupted(lane, stop, shop), _STOPS)
    first = {name: (each.place, file) for each in reversed(stopped) for name, file in each.files.items()}  # each once
    sealed = sorted(one_of_each(shop.alone.folder))
    halves = [sealed[each :: len(shop.lanes)] for each in range(len(shop.lanes))]
    found = [
        each for told in shop.each(lambda lane, kinds: _damage_finished(lane, kinds, shop), halves) for each in told
    ]
    told = shop.each(lambda lane, item: _damage_work(lane, item[0], item[1], shop), sorted(first.items()))
    found += [each for few in told for each in few]
    unstruck = [problem for each in stopped for problem in each.problems]
    interrupted = verdict("interrupted, to be damaged", unstruck, f"{len(stopped)} runs: {len(first)} kinds of file")
    return [interrupted, *_by_what(found), _unseen(shop), _misremembered(shop)]


@dataclass(frozen=True)
class _Found:
    name: str
    where: str
    what: str
    problems: list[str]


@dataclass(frozen=True)
class _Interrupted:
    """A place whose run ended inside a stage, with all that lies outside what is sealed there, by kind."""

    place: Place
    files: dict[str, Path]
    problems: list[str]


def _by_what(found: Sequence[_Found]) -> list[Check]:
    """A line for every sort of damage and of file."""
    checks = []
    for where in sorted({each.where for each in found}):
        for what in (FLIP, EMPTY, HALF):
            here = [each for each in found if (each.where, each.what) == (where, what)]
            problems = [f"{each.name}: {problem}" for each in here for problem in each.problems]
            checks.append(
                verdict(f"{what}, {where}", problems, f"{len(here)} kinds of file: the same bytes in the end")
            )
    return checks


def _damage_finished(lane: Lane, kinds: Sequence[str], shop: Workshop) -> list[_Found]:
    """One place, damaged and repaired again and again, as the memory of hashes is lost with a copy."""
    if not kinds:
        return []
    place = shop.place(f"damaged-{kinds[0].replace('/', '-')}", lane)
    place.run()
    found, chance = [], random.Random(f"{shop.seed} {kinds[0]}")
    for name in kinds:
        for what in (FLIP, EMPTY, HALF):
            file = one_of_each(place.folder).get(name)
            problems = ["there is no such file"] if file is None else _repaired(place, Damage(file, what), chance, shop)
            found.append(_Found(name, "in what a finished run left", what, problems))
    return found


def _repaired(place: Place, damage: Damage, chance: random.Random, shop: Workshop) -> list[str]:
    parts = damage.file.relative_to(place.folder).parts
    broken = parts[1] if parts[1] in NAMES else ""
    before, quarantined, whole = place.manifests(), set(_quarantined(place)), damage.file.read_bytes()
    damage.do(chance)
    damaged = damage.file.read_bytes()
    remade = _READERS.get(parts[1], broken)
    if remade != broken:  # only a stage that has to work reads the file
        shutil.rmtree(place.folder / "artifacts" / remade)
    problems = [*place.finish(shop.baseline.outcome), *redone(before, place.manifests(), [remade])]
    aside = set(_quarantined(place)) - quarantined
    if broken and not any(path.name.startswith(broken) for path in aside):
        problems.append("the broken artifact is not in quarantine")
    if problems:  # the next damage goes over it
        place.copy(f"{place.folder.name}-red-{next(_numbers)}")
    if damage.file.is_file() and damage.file.read_bytes() == damaged:  # nobody reads it: the next damage finds it whole
        damage.file.write_bytes(whole)
    return problems


def _quarantined(place: Place) -> Iterator[Path]:
    for root in ROOTS:
        yield from (place.folder / root / ".quarantine").glob("*")


def _interrupted(lane: Lane, stop: tuple[str, float], shop: Workshop) -> _Interrupted:
    """Killed at that share of the stage's fsyncs, or a little earlier: their number differs by a few from run to run.

    The last of them may be that of a memory of hashes, which is written when there is something to remember.
    """
    stage, share = stop
    first = max(1, int(share * shop.baseline.census[stage, "before fsync"]))
    for nth in range(first, max(0, first - _TRIES), -1):
        place = shop.place(f"stopped-{stage}-{nth}", lane)
        ended = place.run(strike=Strike(stage, "before fsync", nth))
        if ended.code == -signal.SIGKILL:
            break
    problems = [] if ended.code == -signal.SIGKILL else [f"not killed at {share:.0%} of {stage}: {ended.told}"]
    left = {
        name: file
        for name, file in one_of_each(place.folder).items()
        if file.relative_to(place.folder).parts[1] not in NAMES
    }
    return _Interrupted(place, left, problems)


def _damage_work(lane: Lane, name: str, at: tuple[Place, Path], shop: Workshop) -> list[_Found]:
    template, file = at
    found = []
    for what in (FLIP, EMPTY, HALF):
        place = replace(template, lane=lane).copy(f"{template.folder.name}-{next(_numbers)}")
        before, chance = place.manifests(), random.Random(f"{shop.seed} {name}")
        Damage(place.folder / file.relative_to(template.folder), what).do(chance)
        problems = [*place.finish(shop.baseline.outcome), *redone(before, place.manifests())]
        found.append(_Found(name, "in what an interrupted run left", what, problems))
        if not problems:  # else it is kept
            shutil.rmtree(place.folder)
    return found


def _misremembered(shop: Workshop) -> Check:
    """The memory of hashes with other hashes: what is whole must not be made again for that."""
    place = shop.place("misremembered", shop.lanes[0])
    place.run(), place.run()
    before = place.manifests()
    memories = [place.folder / root / ".hashes.json" for root in ROOTS]
    for memory in filter(Path.is_file, memories):
        memory.write_text(_DIGEST.sub(lambda found: found[0][::-1], memory.read_text("utf-8")), "utf-8")
    problems = [*place.finish(shop.baseline.outcome), *redone(before, place.manifests())]
    return verdict("a memory of hashes that is wrong", problems, "what is whole is not made again")


def _unseen(shop: Workshop) -> Check:
    """A flip that leaves size and times untouched: a run may use it, `dpo verify` must find it."""
    place = shop.place("unseen", shop.lanes[0])
    place.run()
    [file] = (place.folder / "artifacts" / "train").glob("*/adapter/adapter_model.safetensors")
    place.run()  # by now everything is in the memory of hashes
    shown = {str(file.resolve()): as_shown(file)}
    Damage(file, FLIP).do(random.Random(shop.seed))
    flipped, before, reused = file.read_bytes(), place.manifests(), place.run(unchanged=shown)
    problems = [] if reused.code == 0 else [reused.told]
    if redone(before, place.manifests()) or not file.is_file() or file.read_bytes() != flipped:
        problems.append("the flipped file was not reused, so nothing is said of `dpo verify`")
    verified = place.run("verify", unchanged=shown)
    problems += [] if verified.code == 1 and "adapter_model" in verified.out + verified.err else [verified.told]
    problems += place.finish(shop.baseline.outcome)
    return verdict("a flip that leaves size and times", problems, "found by `dpo verify`, and then made again")
