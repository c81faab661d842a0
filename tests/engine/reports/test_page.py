import dataclasses

import pytest

from engine.reports.page import Answers, Exchange, Picture, Said, Section, Token, TokenView

PARTS = [
    Picture("title", "<svg/>", "what it shows"),
    TokenView("title", (("chosen", (Token("a", True),)),)),
    Answers("title", (Exchange("harmful", "a question", (Said("before", "an answer"),)),)),
    Section("title", ("text",)),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_is_told_once_and_for_all(part):
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.title = "another"
    assert part in {part}  # so a page can be compared, and kept by what it says


def test_an_answer_is_no_refusal_and_has_no_marks_unless_it_is_said():
    assert Said("before", "an answer") == Said("before", "an answer", marks=(), refused=False)
