from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reports.svg import bare

HEAD = '<?xml version="1.0"?>\n<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'


def made(content: str) -> str:
    """What is left within the element."""
    svg = bare(f"{HEAD}{content}</svg>")
    return svg[svg.index(">") + 1 : -len("</svg>")] if svg.endswith("</svg>") else ""


def test_it_is_one_element_that_a_browser_knows_as_a_picture_and_whose_letters_are_the_readers():
    svg = bare(f'{HEAD}<text style="font-size: 9px; font-family: DejaVu Sans">a</text></svg>')
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" style="font-family: system-ui, sans-serif">')
    assert "xlink" not in svg
    assert ElementTree.fromstring(svg)[0].attrib == {"style": "font-size: 9px"}


def test_groups_that_say_nothing_of_what_they_hold_are_gone_and_the_others_stay():
    assert made('<g id="a"><g/><g>\n <path d="M 1 2"/> </g></g>') == '<path d="M 1 2" />'
    assert made('<g style="opacity: 0.5"><g><path/></g></g>') == '<g style="opacity: 0.5"><path /></g>'
    assert made('<defs><style>* {}</style></defs><metadata>a</metadata><g style="opacity: 0.5"></g>') == ""


def test_only_what_is_referred_to_has_a_name_and_a_short_one():
    found = made('<defs><path id="mark"/></defs><use id="b" xlink:href="#mark"/><path clip-path="url(#c)"/><g id="c"/>')
    assert '<defs><path id="n0" /></defs><use href="#n0" />' in found
    assert made('<path id="z" style="fill: #24292f" fill="#abc"/>') == '<path style="fill: #24292f" fill="#abc" />'


def test_places_are_rounded_to_a_tenth_and_shares_are_left_as_they_are():
    assert made('<path d="M 1.06 2.04 \nL 3 -4.96 "/>') == '<path d="M 1.1 2 3 -5" />'
    assert made('<path d="M 0 1.25 C 0 0.3 1 1 2 2 L 3 3 z "/>') == '<path d="M 0 1.2 C 0 0.3 1 1 2 2 L 3 3 z" />'
    assert made('<path style="opacity: 0.28; stroke-linejoin: miter"/>') == '<path style="opacity: 0.28" />'


@pytest.mark.parametrize(
    ("turn", "left"),
    [("rotate(-0 12.1 3)", ""), ("translate(1.55 2) rotate(-90)", ' transform="translate(1.6 2) rotate(-90)"')],
)
def test_a_turn_by_nothing_is_left_out(turn, left):
    assert made(f'<text x="3" transform="{turn}">a</text>') == f'<text x="3"{left}>a</text>'


@given(st.text("ab <>&\"';#()$1.23456", min_size=1))
def test_words_stay_as_they_are(words):
    told = words.replace("&", "&amp;").replace("<", "&lt;")
    (text,) = ElementTree.fromstring(bare(f'{HEAD}<g><text id="t">{told}</text> </g></svg>'))
    assert text.text == words
