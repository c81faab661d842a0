from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proof.kills import ALL, TIMED, Kill, Waiting, cells, draw
from proof.points import POINTS
from proof.profile import NAMES

EVERYWHERE = Counter({(stage, point): 5 for stage in NAMES for point in POINTS})


def test_every_cell_is_met_once() -> None:
    assert sorted(cells(EVERYWHERE)) == sorted((stage, point) for stage in NAMES for point in ALL)


def test_a_point_that_a_stage_never_comes_to_is_not_drawn() -> None:
    census = EVERYWHERE.copy()
    census["train", "removing"] = 0
    assert ("train", "removing") not in cells(census)
    assert {("train", point) for point in TIMED} <= set(cells(Counter()))


@given(count=st.integers(1, 400), seed=st.integers(0, 99))
def test_kills_are_even_over_stages_and_over_points(count: int, seed: int) -> None:
    kills = draw(count, seed, EVERYWHERE)
    assert len(kills) == count
    for names, drawn in ((NAMES, [kill.stage for kill in kills]), (ALL, [kill.point for kill in kills])):
        counts = Counter({name: drawn.count(name) for name in names})
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_seed_decides_where_they_strike() -> None:
    assert draw(50, 1, EVERYWHERE) == draw(50, 1, EVERYWHERE) != draw(50, 2, EVERYWHERE)


def test_a_stage_takes_its_own_kills_and_no_more_than_it_may() -> None:
    waiting = Waiting(deque(draw(4 * len(NAMES), 0, EVERYWHERE)))
    assert [kill.stage for kill in waiting.take("sft", 3)] == ["sft"] * 3
    assert len(waiting.take("sft", 3)) == 1
    assert len(waiting.kills) == 4 * (len(NAMES) - 1)


def test_a_kill_that_came_too_late_strikes_earlier_and_is_given_up_in_the_end() -> None:
    kill = Kill("sft", "before write", 0.8)
    waiting = Waiting(deque([kill]))
    for tries in range(1, 10):
        [kill] = waiting.take("sft", 1)
        waiting.put_back(kill, missed=True)
        assert waiting.kills[0].tries == tries
    assert waiting.kills[0].share == pytest.approx(0.8 / 2**9)
    waiting.put_back(waiting.take("sft", 1)[0], missed=True)
    assert not waiting.kills
    assert len(waiting.missed) == 1


def test_a_kill_that_is_kept_for_another_place_is_as_it_was() -> None:
    waiting = Waiting(deque())
    waiting.put_back(Kill("sft", "before write", 0.8), missed=False)
    assert waiting.kills == deque([Kill("sft", "before write", 0.8)])
