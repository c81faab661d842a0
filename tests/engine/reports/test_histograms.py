import math
from xml.etree import ElementTree

import numpy as np
import pytest

from engine.reports.drawing import CHOSEN, REJECTED
from engine.reports.histograms import Values, histogram
from engine.reports.page import Picture
from engine.reports.pictures import Mark


def shown_in(picture: Picture) -> str:
    assert "could not be drawn" not in picture.alt
    texts = (each for each in ElementTree.fromstring(picture.svg).iter() if each.tag.endswith("text"))
    return " ".join("".join(each.itertext()).strip() for each in texts)


@pytest.fixture
def stairs(monkeypatch):
    """What is drawn: (name, colour, heights, edges) of each distribution."""
    from matplotlib.axes import Axes

    drawn, real = [], Axes.stairs

    def record(axes, values, edges, **how):
        drawn.append((how["label"], how["color"], np.array(values), np.array(edges)))
        return real(axes, values, edges, **how)

    monkeypatch.setattr(Axes, "stairs", record)
    return drawn


def test_a_histogram_tells_how_the_values_lie_and_where_the_cut_is():
    picture = histogram("lengths", [Values("chosen", range(101), CHOSEN)], x="tokens", marks=[Mark(90, "the cut")])
    assert picture.alt == "chosen: 101; from 0 to 100; 5%, half and 95% lie below 5, 50, 95; the cut: 90"
    assert "the cut" in shown_in(picture)


def test_axes_of_whole_numbers_have_no_ticks_between_them():
    ticks = shown_in(histogram("few", [Values("n", [1, 2])], x="tokens"))
    assert "." not in ticks


def test_a_mark_that_is_no_number_is_left_out():
    picture = histogram("few", [Values("n", [1, 2])], x="tokens", marks=[Mark(math.nan, "nowhere")])
    assert "nowhere" not in shown_in(picture) + picture.alt


def test_bins_are_as_high_as_there_are_values_in_them(stairs):
    near, far = [1] * 3 + [2] * 5 + [9], [2, 9, 9, 9]
    picture = histogram("n", [Values("near", near, CHOSEN), Values("far", far, REJECTED)], x="tokens")
    for (name, colour, heights, edges), expected, values in zip(
        stairs, [("near", CHOSEN), ("far", REJECTED)], (near, far), strict=True
    ):
        assert (name, colour) == expected
        for value in (1, 2, 9):
            assert heights[np.searchsorted(edges, value) - 1] == values.count(value)
        assert heights.sum() == len(values)
    assert "further out" not in picture.alt


def test_rows_at_a_cut_that_is_shown_stand_at_the_cut_and_nowhere_else(stairs):
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 0.6, 20_000).astype(int), 2_047)
    lengths[:82] = 2_048
    histogram("n", [Values("rows", lengths)], x="tokens", marks=[Mark(2_048, "cut at 2,048")])
    ((_, _, heights, edges),) = stairs
    assert heights.sum() == 20_000
    assert edges[-2] < 2_048 < edges[-1]
    assert heights[-1] == (lengths > edges[-2]).sum()
    assert heights[(edges[:-1] > 1_400) & (edges[1:] < 1_900)].max() < 10


def test_what_lies_far_out_is_counted_in_words_and_not_drawn(stairs):
    margins = np.concatenate([np.linspace(0, 1, 997), [-30.0, 40.0, 50.0]])
    picture = histogram("n", [Values("pairs", margins)], x="margin")
    ((_, _, heights, edges),) = stairs
    out = (margins < edges[0]).sum(), (margins > edges[-1]).sum()
    assert heights.sum() == 1_000 - sum(out)
    assert edges[0] > -1 and edges[-1] < 2
    assert heights.max() < 40
    assert "from -30 to 50" in picture.alt
    assert (
        f"{out[0]} further out than is drawn, down to -30; {out[1]} further out than is drawn, up to 50" in picture.alt
    )
    shown = shown_in(picture)
    assert f"{out[0]} further out, ← down to -30" in shown and f"{out[1]} further out, up to 50 →" in shown
