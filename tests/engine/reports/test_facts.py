import math

import pytest

from engine.reports.facts import counted, facts, named


def test_names_that_nothing_is_known_of_have_no_row():
    shown = facts("How", {"pace": ["2,000 tokens", "", "on cpu"], "layout": ["", ""], "none": []})
    assert shown == "**How**\n\n|  |  |\n| --- | --- |\n| pace | 2,000 tokens, on cpu |"
    assert facts("How", {"layout": [""]}) == ""


def test_a_count_has_its_word_behind_it_and_is_none_without_a_number():
    assert counted(2400, "pairs") == "2,400 pairs"
    assert counted(3) == "3"
    assert counted(math.nan, "nats") == "nan nats"
    assert [counted(value, "pairs") for value in (None, "3", True, [3])] == ["", "", "", ""]


def test_a_word_shows_as_text():
    assert named("sdpa", "{} attention") == "sdpa attention"
    assert named("a|b<script>") == r"a\|b&lt;script&gt;"
    assert len(named("x" * 500)) <= 60


@pytest.mark.parametrize("value", ["", None, 3, ["x"]])
def test_what_is_no_word_is_nothing(value):
    assert named(value, "{} attention") == ""
