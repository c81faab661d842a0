import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.reports.drawing import AFTER, BEFORE, CHOSEN, PLAIN, REJECTED
from engine.reports.histograms import Values, histogram
from engine.reports.markdown import share
from engine.reports.page import Picture
from engine.reports.pictures import (
    Bar,
    Curve,
    Mark,
    Whisker,
    bars,
    curves,
    reliability,
    whiskers,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "$x^2$",
    "$",
    "\\frac{",
    "](javascript:x)",
    "_x",
    "&amp;",
    "a\x00\x1b[2J",
]
HOSTILE += ["\u202eabc", "指令 日本", "\ud800", "\ufffe\uffff", "𝒳" * 40, "x" * 100_000, "", " ", "-->", "]]>", "\n\n#"]
NUMBERS = (
    st.floats() | st.integers(-3, 3).map(float) | st.sampled_from([1e9, -1e9, math.nan, math.inf, -math.inf, 1e-300])
)


def texts(picture: Picture) -> str:
    """All that the picture shows as text; it must parse, hold no element that acts, and be no mere note."""
    assert "could not be drawn" not in picture.alt
    root = ElementTree.fromstring(picture.svg)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= {"svg", "g", "path", "defs", "use", "text", "tspan", "clipPath", "rect", "line", "title", "image"}
    return " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))


def every_chart(name: str, values: list[float]) -> list[Picture]:
    whole = list(range(len(values)))
    low, high = (values[0], values[-1]) if values else (None, None)
    return [
        curves(name, [Curve(name, whole, values), Curve(name, values, whole)], x=name, y=name, marks=[Mark(2, name)]),
        curves(name, [Curve(name, whole, values)], smooth=False, log=True, levels=[(name, v) for v in values[:1]]),
        histogram(name, [Values(name, values, CHOSEN), Values(name, [1, 2], REJECTED)], x=name, y=name),
        histogram(name, [Values(name, values)], x=name, marks=[Mark(v, name) for v in values[:2]]),
        whiskers(name, [Whisker(name, v, low, high) for v in values[:3]], x=name, marks=[Mark(0, name)]),
        bars(name, [Bar(name, (v, None)) for v in values[:3]], [(name, BEFORE), (name, AFTER)], x=name, form=share),
        reliability(name, [(v, v, 3) for v in values[:3]], x=name, y=name),
    ]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_a_hostile_name_is_shown_as_text_and_is_nothing_else(name):
    picture = bars(name, [Bar(name, [1]), Bar("other", [2])], [(name, PLAIN)], x=name)
    shown = texts(picture)
    assert "<script" not in picture.svg
    if len(name) < 28 and name.isprintable() and name.strip():
        assert shown.count(name) == 2  # the row's and the axis'


def test_what_looks_like_mathematics_is_not_set_as_such():
    assert "$\\alpha$ and $x^2$" in texts(bars("", [Bar("$\\alpha$ and $x^2$", [1])], [("n", PLAIN)]))


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    shown = texts(curves("two", [Curve("_x", [1, 2], [1, 2]), Curve("_y", [1, 2], [2, 1])]))
    assert "_x" in shown
    assert "_y" in shown


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf, 1.0],
        [3.0],
        [5.0] * 40,
        [1e9, 2e9],
        [-1e308, 1e308],
        [1e-300, 2e-300],
        [1e17, 1e17 + 64],
    ],
    ids=str,
)
def test_no_numbers_are_too_odd_to_be_drawn(values):
    for picture in every_chart("n", values):
        texts(picture)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40) | st.sampled_from(HOSTILE), st.lists(NUMBERS, max_size=8))
def test_any_name_and_any_numbers_make_a_picture_that_parses(name, values):
    for picture in every_chart(name, values):
        texts(picture)
        assert "<script" not in picture.svg


def test_the_same_numbers_give_the_same_bytes():
    assert every_chart("n", [1.0, 2.0, 5.0]) == every_chart("n", [1.0, 2.0, 5.0])


def test_a_curve_tells_its_ends_in_words():
    picture = curves("loss", [Curve("loss", [1, 2, 3], [0.7, math.nan, 0.2])], y="loss")
    assert picture.alt == "loss: 0.7 at step 1, 0.2 at step 3, between 0.2 and 0.7"


def test_a_curve_tells_what_was_measured_and_not_the_smoothed_line():
    loss = [1.0] * 290 + [0.5] * 9 + [5.0]
    picture = curves("loss", [Curve("loss", range(300), loss)])
    assert picture.alt == "loss: 1 at step 0, 5 at step 299, between 0.5 and 5"


def test_words_beside_marks_are_no_longer_than_the_axes_are_high():
    marks = [Mark(2, name) for name in ("over-refusal", "displacement", "looping")]
    shown = texts(curves("loss", [Curve("loss", [1, 2, 3], [1, 2, 3])], marks=marks))
    assert "over-refus…" in shown


@pytest.mark.parametrize("chart", [curves, whiskers, bars, reliability, histogram])
def test_a_chart_that_cannot_be_drawn_says_so_and_breaks_nothing(chart, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    given = {bars: ([], []), reliability: ([],)}.get(chart, ([],))
    words = {} if chart in (bars, curves, whiskers) else {"x": "x"} | ({"y": "y"} if chart is reliability else {})
    assert chart("title", *given, **words).alt == "this picture could not be drawn (RuntimeError: no fonts)"


def test_a_long_curve_is_thinned_out_but_keeps_its_end():
    steps = np.arange(20_000)
    picture = curves("loss", [Curve("loss", steps, steps / 10)], smooth=False)
    assert len(picture.svg) < 20_000
    assert "2,000 at step 19,999" in picture.alt


def test_a_logarithmic_curve_leaves_out_what_is_not_above_zero():
    picture = curves("norm", [Curve("norm", [1, 2, 3], [0.0, 1.0, 10.0])], log=True)
    assert "1 at step 2" in picture.alt


def test_a_whisker_without_an_interval_is_a_point_and_one_that_is_no_number_is_left_out():
    picture = whiskers("rate", [Whisker("a", 0.5, 0.4, 0.6), Whisker("b", 0.5), Whisker("c", math.nan)], form=share)
    assert picture.alt == "a: 50.0% (40.0% to 60.0%); b: 50.0%"


def test_bars_say_each_value_behind_them_and_a_dash_where_there_is_none():
    picture = bars("shares", [Bar("a", (0.25, None))], [("before", BEFORE), ("after", AFTER)], form=share)
    assert picture.alt == "a: before 25.0%, after –"
    assert "25.0%" in texts(picture)


def test_ticks_of_round_shares_have_no_digit_behind_the_point():
    shown = texts(reliability("sure", [(0.6, 0.55, 3), (0.9, 0.97, 8)], x="sure", y="right"))
    assert re.search(r"\b60%", shown)
    assert ".0%" not in shown


def test_a_reliability_bin_without_pairs_or_numbers_does_no_harm():
    picture = reliability("sure", [(0.6, 0.55, 0), (math.nan, 0.5, 3)], x="sure", y="right")
    assert picture.alt == "sure 60.0%, right 55.0%, 0 pairs"


def test_values_of_several_beside_one_name_share_its_row_and_a_legend_names_whose_they_are():
    both = [Whisker("rate", 0.1, colour=BEFORE, of="then"), Whisker("rate", 0.9, 0.8, 1.0, AFTER, of="now")]
    picture = whiskers("t", both, form=share)
    assert picture.alt == "rate, then: 10.0%; rate, now: 90.0% (80.0% to 100.0%)"
    drawn = [found.text for found in ElementTree.fromstring(picture.svg).iter() if found.tag.endswith("text")]
    assert [drawn.count(word) for word in ("rate", "then", "now")] == [1, 1, 1]


def test_values_of_one_name_that_are_nobodys_keep_rows_of_their_own():
    picture = whiskers("t", [Whisker("cut", 0.1), Whisker("cut", 0.9)])
    assert len(re.findall(">cut<", picture.svg)) == 2


def test_a_jump_of_a_single_step_is_drawn_however_long_the_line_is():
    values = np.ones(10_000)
    values[3_333] = 500
    flat, spiked = (curves("norm", [Curve("norm", range(10_000), each)]).svg for each in (np.ones(10_000), values))
    ticks = [re.sub(r"<[^>]*>", "", each) for each in re.findall(r"<text.*?</text>", spiked)]
    assert any(each in ("400", "500") for each in ticks)
    assert flat != spiked


def test_a_level_far_off_is_told_and_leaves_the_line_its_height():
    line = [Curve("norm", range(10), [1.0 + 0.1 * place for place in range(10)])]
    near, far, none = (
        curves("norm", line, levels=levels) for levels in ([("clipped above", 5.0)], [("clipped above", 1e9)], [])
    )
    written = [set(re.findall(r">([^<>]+)</text>", each.svg)) for each in (near, far, none)]
    assert "clipped above" in written[0] and written[1] - written[2] <= {"norm"}
    assert "clipped above" in far.alt and "clipped above" in near.alt
