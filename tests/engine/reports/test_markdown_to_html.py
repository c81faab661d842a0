import re

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reports.markdown import code, escape, table
from engine.reports.markdown_to_html import as_html

NUMBERS = ["1,234", "97.5% (93.3 to 100.0)", "–"]
WIDE = table(
    ["what", "before", "after"],
    [["harmful requests refused", "0.0% (0.0 to 8.8)", "–"], ["normal ones", "0.0% (0.0 to 4.9)", "4.0% (1.0 to 9.0)"]],
)


def opened(html: str, tag: str) -> list[str]:
    """The tags of that name as they were opened."""
    return re.findall(rf"<{tag}\b[^>]*>", html)


def test_markdown_cannot_bring_html_images_or_links_that_run():
    links = "[j](javascript:x) [d](data:text/html,x) [w](https://a.b/c) [h](#here)"
    html = as_html(f"<b onclick=x>b</b> ![i](data:image/png;base64,AA) {links}", 3)
    assert re.findall(r'href="([^"]*)"', html) == ["https://a.b/c", "#here"]
    assert not opened(html, "img") and not opened(html, "b")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=30), min_size=3, max_size=3), min_size=2, max_size=4))
def test_no_cell_makes_an_element_or_an_attribute(rows):
    html = as_html(
        table([escape(cell) for cell in rows[0]], [[escape(cell), code(cell), cell and "–"] for cell, *_ in rows[1:]]),
        3,
    )
    bare = re.sub(r'"[^"]*"', '""', html)
    known = (
        r'</?(?:div|table|thead|tbody|tr|th|td|span|code|small|p)(?: (?:class|dir|tabindex|data-label)="")*>|<br ?/?>'
    )
    assert "<" not in re.sub(known, "", bare)


def test_columns_of_numbers_stand_flush_right_and_those_of_words_do_not():
    rows = [[name, figure, mixed] for name, figure, mixed in zip("abc", NUMBERS, ["1", "x", "2"], strict=True)]
    html = as_html(f"{table(['what', 'number', 'mixed'], rows)}\n\nafter it", 3)
    assert ["number" in each for each in opened(html, "th")] == [False, True, False]
    assert ["number" in each for each in opened(html, "td")] == [False, True, False] * 3
    assert opened(html, "div") == ['<div class="scroll" tabindex="0">']


def test_the_interval_behind_a_number_is_set_apart_and_a_bracket_in_words_is_not():
    html = as_html(table(["a", "b"], [["x (1 to 2)", NUMBERS[1]], ["y", "**+0.1 (-1e-05 to +2)**"]]), 3)
    assert re.findall("<small>(.*?)</small>", html) == ["(93.3 to 100.0)", "(-1e-05 to +2)"]
    assert "x (1 to 2)" in html


def test_a_table_that_is_too_wide_for_a_phone_names_its_cells_and_says_which_are_empty():
    html = as_html(WIDE, 3)
    assert opened(html, "table") == ['<table class="stack">']
    assert re.findall('data-label="(.*?)"', html) == ["what", "before", "after"] * 2
    assert [each for each in opened(html, "td") if "none" in each] == [opened(html, "td")[2]]


def test_a_table_that_fits_or_has_two_columns_stays_a_table():
    assert "stack" not in as_html(table(["a", "b", "c"], [["1", "2", "3"]]), 3)
    assert "stack" not in as_html(table(["key", "value"], [["k" * 30, "v" * 60]]), 3)


def test_a_line_that_is_bold_as_a_whole_is_a_heading_and_one_that_begins_bold_is_not():
    html = as_html("**Held-out pairs**\n\n**No** harm done\n\n## Deep\n\n*a* **b**", 4)
    assert re.findall(r"<h(\d)[^>]*>(.*?)</h", html) == [("4", "Held-out pairs"), ("4", "Deep")]
    assert len(opened(html, "strong")) == 2


def test_a_long_table_is_folded_where_that_is_asked_for():
    long, short = (table(["n"], [[str(n)] for n in range(rows)]) for rows in (40, 5))
    assert "<summary>40 rows</summary>" in as_html(long, 3, folding=True)
    assert not opened(as_html(short, 3, folding=True) + as_html(long, 3), "details")
