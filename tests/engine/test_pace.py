import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pace import Course, Pace, with_tokens


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heard():
    """What a stage told of its progress: done, total, numbers."""
    return []


@pytest.fixture
def tell(heard):
    return lambda done, total, **numbers: heard.append((done, total, numbers))


def test_a_pace_is_units_a_second_of_the_time_between_the_pieces(clock):
    pace = Pace(10.0, clock)
    assert pace.rate is None
    for units in (30, 10):
        clock.now += 2.0
        pace.add(units)
    assert (pace.rate, pace.seconds) == (10.0, 4.0)


def test_what_lies_further_back_than_its_seconds_no_longer_counts(clock):
    pace = Pace(10.0, clock)
    for units in [1000] * 20 + [1] * 20:
        clock.now += 1.0
        pace.add(units)
    assert pace.rate == pytest.approx(1.0)


def test_of_slow_pieces_several_count_however_long_ago_they_were(clock):
    pace = Pace(10.0, clock)
    for seconds in (300, 100, 100, 100, 100):
        pace.add(50, seconds)
    assert pace.rate == 0.5


def test_the_time_before_the_work_begins_is_no_part_of_its_pace(clock):
    pace = Pace(10.0, clock)
    clock.now = 500.0  # a model was loaded
    pace.begin()
    clock.now += 2.0
    assert pace.tokens(2469) == {"tokens/s": 1234}


def test_tokens_of_which_there_were_none_yet_have_no_pace(clock):
    clock.now += 1.0
    assert Pace(10.0, clock).tokens(0) == {}


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(1e-6, 100)), min_size=1, max_size=60))
def test_a_pace_lies_between_the_slowest_and_the_fastest_piece(pieces):
    pace = Pace(10.0)
    for units, seconds in pieces:
        pace.add(units, seconds)
    rates = [units / seconds for units, seconds in pieces]
    assert pace.rate is None or min(rates) * (1 - 1e-6) <= pace.rate <= max(rates) * (1 + 1e-6)


def test_a_count_of_items_becomes_a_count_of_the_tokens_that_are_new():
    told = []
    tell = with_tokens(lambda done, tokens: told.append((done, tokens)), [5, 7, 11], before=10)
    for done in (0, 2, 2, 3):
        tell(done)
    assert told == [(10, 0), (12, 12), (12, 0), (13, 11)]


def test_a_course_goes_through_its_parts_from_nothing_to_all_and_each_shows_under_its_name(tell, heard):
    course = Course(tell, 10)
    pairs = course.part(4, "pairs")
    pairs(0, 0)
    pairs(3, 30)  # the last is not told of
    answers = course.part(6, "answers")
    answers(0, 0)
    answers(6, 60)
    assert [(done, total) for done, total, _ in heard] == [(0, 10), (3, 10), (4, 10), (10, 10)]
    assert [set(numbers) for *_, numbers in heard] == [
        {"pairs"}, {"pairs", "tokens/s"}, {"answers"}, {"answers", "tokens/s"},
    ]  # fmt: skip
    assert heard[-1][2]["answers"] == 6


def test_a_part_without_a_name_shows_its_pace_alone(tell, heard):
    part = Course(tell, 3).part(3)
    part(0, 0)
    part(3, 30)
    assert heard[0] == (0, 3, {})
    assert list(heard[1][2]) == ["tokens/s"]


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=5))
def test_the_progress_of_a_course_never_falls_and_ends_at_its_total(parts):
    heard = []
    total = sum(map(sum, parts))
    course = Course(lambda done, total, **_: heard.append(done), total)
    for steps in parts:
        told, done = course.part(sum(steps), "a"), 0
        for step in (0, *steps):
            done += step
            told(done, step)
    assert heard == sorted(heard)
    assert (heard or [0])[-1] == total
