import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reports.markdown import block, code, duration, escape, number, plain, share, table


@given(st.text())
def test_escaped_text_stays_on_its_line_and_in_its_cell_and_says_the_same(text):
    shown = escape(text)
    assert len((shown + "x").splitlines()) == 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[`|*_\[\]~]", shown)
    assert "<" not in shown
    assert html.unescape(re.sub(r"\\([\\`*_\[\]|~])", r"\1", shown)) == plain(text)


@given(st.text())
def test_code_is_one_piece_of_code_in_one_cell(text):
    shown = code(text)
    assert shown.count("`") == 2
    assert len(shown.splitlines()) == 1
    assert not re.search(r"(?<!\\)\|", shown)


@pytest.mark.parametrize("text", ["a|b", "a\\|b", "a\\\\|b", "||", "\\||"])
def test_no_bar_in_code_ends_the_cell(text):
    # As GitHub's parser cuts rows: a backslash and the character behind it are one, whatever that is.
    assert "|" not in re.sub(r"\\.", "", code(text))


def test_empty_code_is_no_opening_mark_for_what_follows():
    assert code("") == "` `"


@given(st.text())
def test_no_text_ends_a_block_or_moves_the_cursor(text):
    fence, *lines, last = block(text).split("\n")
    assert fence == last
    assert set(fence) == {"`"}
    assert not any(line.startswith(fence) for line in lines)
    assert not any("\x1b" in line or "\r" in line for line in lines)


ACTIVE = st.lists(
    st.text(max_size=5)
    | st.sampled_from(
        ["![i](http://x)", "<img src=http://x>", "[a](javascript:b)", "|", "`", "\n", "\x1b[2J", "\u202e", "]("]
    )
).map("".join)


@given(ACTIVE)
def test_no_text_becomes_an_image_a_link_html_or_another_row(text):
    for shown in (escape(text), code(text)):
        line = table(["a"], [[shown]]).split("\n")
        assert len(line) == 3 and len(re.findall(r"(?<!\\)(?:\\\\)*\|", line[2])) == 2
    assert not re.search(r"(?<!\\)(?:\\\\)*\]\(|(?<!\\)(?:\\\\)*\[", escape(text))
    assert "<" not in escape(text) and not set(escape(text) + code(text)) & {"\x1b", "\u202e", "\r", "\u2028"}


def test_secrets_are_hidden_before_marks_could_tear_them_apart(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "ab_cd*ef`gh|ij")
    for shown in (escape, code, block, plain):
        assert "cd" not in shown("x ab_cd*ef`gh|ij y")


def test_what_could_do_something_is_shown_and_does_nothing():
    assert escape("a|b\n<script>`x`") == r"a\|b ⏎ &lt;script&gt;\`x\`"
    assert escape("[click](http://x) ![i](j) *b* _i_ ~~s~~ \\") == (
        r"\[click\](http://x) !\[i\](j) \*b\* \_i\_ \~\~s\~\~ \\"
    )
    assert plain("\x1b[31mred\u202e\ud800") == "·[31mred··"


def test_long_text_is_cut_with_a_mark():
    assert plain("abcdef", 4) == "abc…"
    assert plain("abcd", 4) == "abcd"


def test_a_table_without_rows_is_nothing():
    assert table(["a"], []) == ""
    assert table(["a", ""], [["1", "2"]]) == "| a |  |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (0, "0"),
        (0.0, "0"),
        (0.1 + 0.2, "0.3"),
        (5e-7, "5e-07"),
        (-0.00012345, "-0.000123"),
        (12345.678, "12,346"),
        (float("nan"), "nan"),
        (True, "True"),
        ("bf16", "bf16"),
        (["plain", 1000], "plain, 1,000"),
    ],
)
def test_numbers_are_fit_for_people(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_times_are_fit_for_people(seconds, shown):
    assert duration(seconds) == shown


def test_shares_are_percentages():
    assert [share(value) for value in (0, 0.12345, 1, "?")] == ["0.0%", "12.3%", "100.0%", "?"]
