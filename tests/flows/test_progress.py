"""How far a stage is, in one line of a terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from flows._progress import SEPARATOR, Work, bars, fitted, time_left

TRAIN = {"loss": 0.61234, "margin": 1.5, "tokens/s": 76799}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def worked(clock: Clock, *steps: tuple[float, int], total: int = 100) -> Work:
    """What told so many units at such times."""
    work = Work(clock)
    for clock.now, done in steps:
        work.reached(done, total, TRAIN)
    return work


def test_it_says_where_it_is_its_numbers_in_order_and_the_time_left(clock: Clock) -> None:
    work = worked(clock, (0, 10), (5, 20))
    assert work.parts() == ["20 of 100", "loss 0.6123", "margin 1.5", "76,799 tokens/s", "40 s left"]


def test_of_a_total_that_is_not_known_it_says_what_is_done(clock: Clock) -> None:
    assert worked(clock, (0, 10), (5, 4200), total=0).parts()[0] == "4,200"
    assert Work(clock).parts() == []


def test_a_resumed_stage_is_as_fast_as_it_is_now_and_not_as_if_all_were_its_own(clock: Clock) -> None:
    assert worked(clock, (0, 80), (4, 84)).left == 16.0


def test_the_first_updates_do_not_tell_a_time_that_nobody_knows(clock: Clock) -> None:
    assert worked(clock, (100, 1)).left is None
    assert worked(clock, (0, 1), (0.1, 30), (1.9, 31)).left is None


def test_the_time_left_runs_down_between_updates_and_never_below_nothing(clock: Clock) -> None:
    work = worked(clock, (0, 0), (10, 50))
    assert work.left == 10.0
    clock.now = 14.0
    assert work.left == 6.0
    clock.now = 99.0
    assert work.left == 0.0


def test_the_time_left_is_steady_where_single_steps_are_not(clock: Clock) -> None:
    times = [0.4 * step + (0.3 if step % 2 else 0.0) for step in range(60)]
    work, told = Work(clock), []
    for step, clock.now in enumerate(times):
        work.reached(step, 200, {})
        told.append(work.left)
    known = [left + at for left, at in zip(told, times, strict=True) if left is not None]
    assert len(known) > 50
    assert max(known) - min(known) < 16  # of 80 s


def test_the_end_has_no_time_left(clock: Clock) -> None:
    work = worked(clock, (0, 0), (10, 50), (20, 100))
    assert work.left is None


def test_a_number_gets_no_narrower_again_so_that_what_follows_stands_still(clock: Clock) -> None:
    work = Work(clock)
    work.reached(1, 9, {"loss": 0.6123, "margin": 1.0})
    assert work.parts()[1:] == ["loss 0.6123", "margin 1"]
    work.reached(2, 9, {"loss": 0.5, "margin": 1.0})
    assert work.parts()[1:] == ["loss 0.5   ", "margin 1"]


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1 s left"), (19.1, "20 s left"), (80.4, "1 min 20 s left")])
def test_the_time_left_is_whole_seconds(seconds: float, told: str) -> None:
    assert time_left(seconds) == told


@given(st.lists(st.text("ab损", max_size=12), max_size=7), st.integers(0, 60))
def test_a_line_holds_as_many_parts_as_fit_in_their_order(parts: list[str], room: int) -> None:
    line = fitted(parts, room)
    assert cell_len(line) <= room or line == ""
    kept = line.split(SEPARATOR) if line else []
    rest = iter(parts)
    assert all(part in rest for part in kept)
    if cell_len(SEPARATOR.join(parts)) <= room:
        assert line == SEPARATOR.join(parts)


def test_the_time_left_goes_last_and_what_the_bar_shows_goes_first() -> None:
    parts = ["20 of 100", "loss 0.6123", "margin 1.5", "76,799 tokens/s", "40 s left"]
    assert fitted(parts, 60) == "loss 0.6123 · margin 1.5 · 76,799 tokens/s · 40 s left"
    assert fitted(parts, 40) == "loss 0.6123 · margin 1.5 · 40 s left"
    assert fitted(parts, 30) == "loss 0.6123 · 40 s left"
    assert fitted(parts, 10) == "40 s left"
    assert fitted(parts, 5) == ""
    assert fitted(parts[:-1], 30) == "loss 0.6123 · margin 1.5"
    assert fitted(parts[:1], 30) == "20 of 100"


@pytest.mark.parametrize(("width", "shows"), [(60, "loss"), (80, "margin"), (100, "tokens/s"), (140, "20 of 100")])
def test_a_bar_is_one_line_and_shows_what_the_terminal_has_room_for(clock: Clock, width: int, shows: str) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    live = bars(console)
    live.add_task("subsample", total=100, completed=20, parts=worked(clock, (0, 10), (5, 20)).parts)
    console.print(live.get_renderable())
    [line] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert cell_len(line) <= width
    assert shows in line and "40 s left" in line and "20%" in line
