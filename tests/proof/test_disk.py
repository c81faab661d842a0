import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proof import disk
from proof.damage import _interrupted
from proof.lane import Lane
from proof.orders import Ended, Order
from proof.places import Outcome, Place
from proof.profile import NAMES
from proof.table import RED
from proof.workshop import Workshop


class Unhurt:
    """A lane whose attempts all end well, wherever they were to be struck."""

    def start(self, order: Order) -> int:
        return 1

    def wait(self, pid: int, order: Order) -> Ended:
        return Ended(0, "", "")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """One in which nothing is mounted and nothing is run."""
    monkeypatch.setattr(disk, "_mount", lambda *words: None)
    monkeypatch.setattr(subprocess, "run", lambda *words, **named: None)
    counts = {(stage, point): 4 for stage in NAMES for point in ("before fsync", "after fsync")}
    made: Any = SimpleNamespace(
        folder=tmp_path,
        lanes=[Unhurt()],
        baseline=SimpleNamespace(census=counts, outcome=Outcome(dict.fromkeys(NAMES, ""), "")),
        place=lambda name, lane: Place.new(tmp_path / name, lane),
    )
    return cast(Workshop, made)


def damaging(problems: list[str]) -> Callable[[Place], list[str]]:
    def work(place: Place) -> list[str]:
        for name in ("left", "ballast"):
            (place.folder / name).touch()
        return problems

    return work


def test_of_a_disk_that_goes_away_a_copy_is_kept_when_something_is_wrong(shop: Workshop) -> None:
    assert disk._mounted(shop, "full", "", damaging(["torn"])) == ["torn"]
    assert {path.name for path in (shop.folder / "full.left").iterdir()} == {"left", "tiny.toml"}


def test_no_copy_is_kept_when_all_is_well(shop: Workshop) -> None:
    assert disk._mounted(shop, "full", "", damaging([])) == []
    assert not (shop.folder / "full.left").exists()


def test_a_disk_that_is_made_read_only_after_no_kill_proves_nothing(shop: Workshop) -> None:
    check = disk._read_only_in_the_midst("read-only", shop)
    assert check.state == RED
    assert check.reason.startswith("not killed")


def test_a_run_that_was_not_interrupted_is_told_before_it_is_damaged(shop: Workshop) -> None:
    stopped = _interrupted(cast(Lane, Unhurt()), ("train", 0.5), shop)
    assert stopped.problems == ["not killed at 50% of train: exit 0: "]
