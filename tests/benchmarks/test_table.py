import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.table import TARGETS, Row, digits, from_json, markdown, meets, row, spread, write

FIELDS = {"name", "shape", "profile", "peer", "ours", "theirs", "ratio", "unit"}


def speed(**more: Any) -> Row:
    return row("train", "small", "short", "trl", [9.0, 7.0, 8.0], [2.0, 1.0, 4.0], "pairs/s", **more)


def test_a_row_holds_medians_their_ratio_and_the_spread() -> None:
    found = speed()
    assert (found.ours, found.theirs, found.ratio) == (8.0, 2.0, 4.0)
    assert (found.ours_spread, found.theirs_spread, found.runs) == ((7.0, 9.0), (1.0, 4.0), 3)


def test_a_row_says_whether_its_target_is_met() -> None:
    assert (speed().target, speed().met) == ("≥ 7", False)
    assert row("train", "small", "short", "trl", [70.0], [10.0], "pairs/s").met is True
    assert row("memory", "768", "short", "trl", [5.0], [10.0], "MiB").met is True
    assert row("memory", "768", "short", "trl", [6.0], [10.0], "MiB").met is False
    assert row("scale", "small", "short", "fewest", [6.0], [10.0], "pairs/s").met is None


def test_fast_but_wrong_numbers_meet_no_target() -> None:
    assert row("bf16", "768", "short", "fp32", [2.0], [1.0], "pairs/s", logps_error=0.005).met is True
    assert row("bf16", "768", "short", "fp32", [2.0], [1.0], "pairs/s", logps_error=0.02).met is False


@pytest.mark.parametrize("target", TARGETS.values())
def test_a_target_has_a_side_and_a_number(target: str) -> None:
    bound = float(target.split(" ")[1])
    assert meets(bound, target)
    assert meets(bound + 0.1, target) != meets(bound - 0.1, target)


@given(st.lists(st.floats(1e-6, 1e12), min_size=1))
def test_the_spread_holds_every_run_to_four_digits(values: list[float]) -> None:
    low, high = spread(values)
    assert all(low * 0.9995 <= value <= high * 1.0005 for value in values)


def test_digits_keeps_what_counts() -> None:
    assert [digits(value) for value in (123_456.0, 0.00123456, 7.0)] == [123_500.0, 0.001235, 7.0]


def test_the_file_is_a_list_of_flat_objects_with_the_agreed_fields(tmp_path: Path) -> None:
    rows = [speed(vocabulary=16_000, machine="two cores", date="2026-11-22"), speed()]
    write(tmp_path / "new" / "latest.json", [each.as_json() for each in rows])
    found = json.loads((tmp_path / "new" / "latest.json").read_text("utf-8"))
    assert len(found) == 2
    assert all(each.keys() >= FIELDS for each in found)
    assert found[0]["vocabulary"] == 16_000
    assert (found[0]["machine"], found[0]["date"]) == ("two cores", "2026-11-22")


def test_a_row_of_another_script_comes_back_as_it_was() -> None:
    assert from_json(speed(vocabulary=5).as_json()) == speed(vocabulary=5)


def test_the_table_shows_ratio_spread_and_verdict() -> None:
    head, line, first = markdown([speed(vocabulary=16_000)]).splitlines()
    assert head.count("|") == line.count("|") == first.count("|")
    assert "| 8 (7–9) | 2 (1–4) | pairs/s | 4 | ≥ 7 | **missed**; vocabulary 16,000 |" in first
