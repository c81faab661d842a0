import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.reports.drawing import COLOURS, drawn, format_ticks, label, legend, name_rows, or_a_note
from engine.reports.markdown import number, share
from engine.reports.page import Picture


def an_svg(**arguments):
    with drawn("step", "loss", **arguments) as (axes, finish):
        axes.plot([1, 2], [3, 4], color=COLOURS[4], label="a")
        axes.legend()
        return finish()


def test_the_svg_is_one_element_that_refers_to_nothing_outside_of_it():
    svg = an_svg()
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    ElementTree.fromstring(svg)
    links = re.findall(r'href="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
    assert all(link.startswith("#") for link in links)
    assert "<style" not in svg and "<metadata" not in svg


def test_every_name_that_is_referred_to_is_there_and_no_other():
    svg = an_svg()
    referred = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
    assert set(re.findall(r' id="([^"]*)"', svg)) == referred


def test_every_colour_is_one_of_the_palette_so_that_a_dark_page_can_change_it():
    assert set(re.findall(r"#[0-9a-f]{6}\b", an_svg().lower())) <= set(COLOURS)


def test_the_words_are_text_in_the_readers_own_font():
    svg = an_svg()
    assert ">loss</text>" in svg
    assert "DejaVu" not in svg


def test_more_rows_make_a_higher_picture():
    heights = [float(ElementTree.fromstring(an_svg(rows=rows)).get("viewBox", "").split()[3]) for rows in (1, 4, 12)]
    assert heights == sorted(set(heights))


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    an_svg()
    assert dict(matplotlib.rcParams) == before


PROGRAM = """
import hashlib, os
from engine.reports.pictures import Curve, curves
picture = curves("t", [Curve("loss", [1, 2, 3], [3, 1, 2])])
print(hashlib.sha256(picture.svg.encode()).hexdigest(), os.environ.get("MPLBACKEND"), picture.alt)
"""
SETTINGS = "text.usetex: True\nfont.size: 40\nlines.linewidth: wide\nno.such: 1\nbackend: nonsense\n"


def printed(folder, **environment):
    """What a process of its own prints that draws a picture in a folder; it must not say anything else."""
    path = str(Path(engine.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split(maxsplit=2)


@pytest.mark.slow
def test_the_settings_of_other_drawings_on_this_machine_change_nothing_and_are_left_alone(tmp_path):
    (tmp_path / "bare").mkdir()
    drawing, _, words = printed(tmp_path / "bare")
    assert words == "loss: 3 at step 1, 2 at step 3, between 1 and 3\n"
    (tmp_path / "matplotlibrc").write_text(SETTINGS, "utf-8")
    (tmp_path / "a file").write_text("", "utf-8")
    nowhere = str(tmp_path / "a file" / "home")  # cannot be made
    assert printed(tmp_path, MPLBACKEND="nonsense") == [drawing, "nonsense", words]
    assert printed(tmp_path / "bare", HOME=nowhere, MPLCONFIGDIR=nowhere)[::2] == [drawing, words]
    assert printed(tmp_path / "bare", MATPLOTLIBRC=str(tmp_path / "matplotlibrc"))[::2] == [drawing, words]


def test_settings_of_the_same_process_change_nothing():
    import matplotlib

    usual = an_svg()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "axes.grid": False, "lines.marker": "x"}):
        assert an_svg() == usual


def test_a_chart_that_cannot_be_drawn_leaves_a_note_in_its_place():
    @or_a_note
    def chart(title, trouble):
        raise trouble

    noted = chart("loss", OSError("no <font>\x1b[2J"))
    assert isinstance(noted, Picture) and noted.title == "loss"
    assert noted.alt == "this picture could not be drawn (OSError: no <font>·[2J)"
    root = ElementTree.fromstring(noted.svg)
    assert "".join(root.itertext()) == "This picture could not be drawn."
    assert set(re.findall(r"#[0-9a-f]{6}\b", noted.svg)) <= set(COLOURS)


@pytest.mark.parametrize("names", [[], ["a row with a name that is long"]], ids=["alone", "beside names"])
@pytest.mark.parametrize("far", [1, 1_250_000, 12_345_678_901])
def test_ticks_below_the_axes_do_not_touch(names, far):
    with drawn("", "", rows=3 if names else None) as (axes, finish):
        axes.plot([0, far], [0, 1])
        if names:
            name_rows(axes, names)
        format_ticks(axes.xaxis, number)
        finish()
        low, high = axes.get_xlim()
        ticks = [each.label1 for each in axes.xaxis.get_major_ticks() if low <= each.get_loc() <= high]
        boxes = [each.get_window_extent() for each in ticks]
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("row", ["a", "shortest, up to 41 tokens"])
def test_a_legend_lies_within_the_picture_however_long_the_names_of_the_rows_are(row):
    with drawn("", "", rows=2) as (axes, finish):
        for name in ("all pairs", "by length alone"):
            axes.axvline(1, label=name)
        name_rows(axes, [row])
        legend(axes, 2)
        finish()
        box, whole = axes.get_legend().get_window_extent(), axes.figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1


def test_ticks_are_few_and_written_as_numbers_are():
    with drawn("", "") as (axes, _):
        axes.plot([0, 1e6], [0, 1])
        format_ticks(axes.xaxis, number)
        format_ticks(axes.yaxis, share)
        shown, shares = axes.xaxis.get_major_formatter(), axes.yaxis.get_major_formatter()
        assert len(axes.xaxis.get_major_locator()()) < 10
        assert (shown(200_000, 0), shares(0.5, 0), shares(0.125, 0)) == ("200,000", "50%", "12.5%")


@pytest.mark.parametrize(("names", "lines"), [(["chosen", "rejected", "cut"], 1), (["a" * 28, "b" * 28, "c" * 28], 3)])
def test_a_legend_has_as_many_names_in_a_row_as_find_room(names, lines):
    with drawn("", "") as (axes, finish):
        for name in names:
            axes.plot([1, 2], label=name)
        legend(axes, len(names))
        heights = set(re.findall(r' y="([^"]*)"[^>]*>(?:chosen|rejected|cut|a+|b+|c+)</text>', finish()))
    assert len(heights) == lines


def test_a_long_label_is_cut_in_its_middle():
    names = [label(f"exports/of/the/whole/year/part-{at}.jsonl") for at in range(3)]
    assert len(set(names)) == 3
    assert all("…" in name and len(name) <= 28 for name in names)


def test_a_label_in_chinese_takes_no_more_room_than_one_in_english():
    assert label("人" * 14) == "人" * 14
    assert label("人" * 15) == "人" * 7 + "…" + "人" * 6


@settings(deadline=None)
@given(st.text(max_size=60))
def test_a_label_is_short_and_holds_nothing_that_acts_or_that_no_xml_may_hold(text):
    shown = label(text)
    assert len(shown) <= 29  # with the mark before an underscore
    assert not shown.startswith("_")
    ElementTree.fromstring(f"<a>{shown.replace('&', '').replace('<', '')}</a>")
