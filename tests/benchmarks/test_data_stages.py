import pytest

from benchmarks.data_stages import SIZES, measure_all, sizes


def test_sizes_end_with_the_one_asked_for() -> None:
    assert sizes(30_000) == [1_000, 3_000, 10_000, 30_000]
    assert sizes(500) == [500]
    assert sizes(2_000) == [1_000, 2_000]
    assert tuple(sizes(1_000_000)) == SIZES


@pytest.mark.slow
def test_every_data_stage_is_measured_for_every_number_of_pairs() -> None:
    figures = measure_all([60, 90])
    stages = ["download", "tokenize", "subsample"]
    assert [(each["pairs"], each["stage"]) for each in figures] == [(n, stage) for n in (60, 90) for stage in stages]
