import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from engine.reports.page import Answers, Exchange, Picture, Said, Section, Token, TokenView
from engine.reports.to_markdown import sections_to_markdown, to_markdown

SAFE = {"p", "strong", "em", "img", "code", "ul", "li", "h2"}
SPECIAL = st.text(alphabet="`*_[]()!|<>&#~\\$\n -+=:/.1aä指\x00\u202e", max_size=24)
HOSTILE = SPECIAL | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "](javascript:x)",
        "a | b\n--- | ---",
        "![x](http://y)",
        "```",
        "`",
        "# x #",
        "- x",
        "**",
    ]
)


def rendered(markdown: str, *, html: bool) -> str:
    reader = MarkdownIt("commonmark", {"html": html}).enable("table")
    reader.validateLink = lambda link: True  # what a careless page lets through, too
    return reader.render(markdown)


def picture(svg: str = "<svg/>", title: str = "title", alt: str = "alt") -> Picture:
    return Picture(title, svg, alt)


def view(*tokens: Token, name: str = "chosen") -> TokenView:
    return TokenView("title", ((name, tokens),))


def answers(text: str) -> Answers:
    return Answers(text, (Exchange(text, text, (Said(text, text, (text,), True),)),))


@pytest.mark.parametrize("html", [False, True])
@settings(deadline=None)
@given(text=HOSTILE)
def test_hostile_text_never_becomes_markup(html, text):
    parts = [picture(title=text, alt=text), view(Token(text, True), Token(text, False), name=text), answers(text)]
    shown = rendered(sections_to_markdown([Section(text, tuple(parts))], pictures=True), html=html)
    assert set(re.findall(r"<([a-z0-9]+)", shown)) <= SAFE
    assert shown.count("<img") == 1 and 'src="data:image/svg+xml;base64,' in shown
    assert "<a" not in shown


@settings(deadline=None)
@given(st.text(alphabet="`*_|<&x指", min_size=1, max_size=12))
def test_a_token_is_shown_as_it_is_whether_it_is_scored_or_not(text):
    for scored in (True, False):
        shown = rendered(to_markdown([view(Token(text, scored))]), html=True)
        shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
        assert f"<em>chosen</em>: {f'<code>{text}</code>' if scored else text}" in shown


def test_tokens_that_are_scored_are_set_apart_from_those_that_are_not():
    written = to_markdown([view(Token("Who", False), Token("␣is", False), Token("I", True), Token("␣am", True))])
    assert written == "**title**\n\n*chosen*: Who ␣is `I` `␣am`\n"


def test_a_token_of_nothing_but_white_space_can_be_seen():
    assert to_markdown([view(Token(" ", True), Token("\n", False))]).endswith("`␣` ␣\n")


def test_a_picture_is_an_image_that_is_part_of_the_text_with_its_words_beside_it():
    written = to_markdown([picture("<svg>☃</svg>", alt="a: [1]")], pictures=True)
    image = re.search(r"!\[a: \\\[1\\\]\]\(data:image/svg\+xml;base64,([^)]*)\)", written)
    assert base64.b64decode(image[1]).decode() == "<svg>☃</svg>"


def test_without_pictures_they_are_left_out_without_a_word():
    assert to_markdown(["before", picture(), "after"], limit=1_000) == "before\n\nafter\n"


def test_an_answer_is_told_with_what_is_to_be_said_of_it():
    said = (Said("before", "Sure"), Said("after", "", ("empty", "refused"), True))
    written = to_markdown([Answers("answers", (Exchange("harmful", "how?", said),))])
    assert "- **harmful**: how?\n  - **before**: Sure\n  - **after** *(empty, refused)*: *(nothing)*" in written


def test_of_a_long_answer_the_beginning_is_told():
    assert "x" * 300 not in to_markdown([answers("x" * 100_000)])


def test_pictures_are_taken_in_their_order_each_if_it_fits_beside_all_the_words():
    parts = ["text", picture("large" * 60, "one"), picture("large" * 60, "two"), picture("s", "three"), "the end"]
    written = to_markdown(parts, pictures=True, limit=len(to_markdown(parts, pictures=True)) - 1)
    assert "one" in written and "two" not in written and "three" in written and "the end" in written
    assert "Pictures that did not fit here, and that the run's report has: 1." in written


def test_what_fits_exactly_is_whole():
    parts = ["text", picture("s" * 300), "指令" * 40]
    whole = to_markdown(parts, pictures=True)
    assert to_markdown(parts, pictures=True, limit=len(whole.encode())) == whole
    assert "did not fit" in to_markdown(parts, pictures=True, limit=len(whole.encode()) - 1)


PARTS = st.lists(
    st.text(max_size=80)
    | st.builds(picture, st.text(max_size=400), st.text(max_size=20), st.text(max_size=40))
    | st.builds(lambda text: view(Token(text, True)), st.text(max_size=60)),
    max_size=8,
)


@settings(deadline=None)
@given(PARTS, st.integers(0, 1_500))
def test_no_page_is_larger_than_its_limit_nor_has_half_a_part(parts, limit):
    written = to_markdown(parts, pictures=True, limit=limit)
    assert len(written.encode("utf-8", "surrogatepass")) <= limit or not written.strip()
    whole = {to_markdown([part], pictures=True).strip("\n") for part in parts}
    for image in re.findall(r"!\[[^\n]*\]\(data:[^\n]*", written):
        assert any(image in each for each in whole)


def test_as_many_parts_as_fit_are_kept_from_the_first_on_with_a_word_on_the_others():
    note = "*The rest did not fit here; the run's report has it.*"
    parts = ["a" * 100, "b" * 100, "c" * 100]
    assert to_markdown(parts, limit=210) == f"{parts[0]}\n\n{note}\n"
    assert to_markdown(parts, limit=260) == f"{parts[0]}\n\n{parts[1]}\n\n{note}\n"
    assert to_markdown(parts, limit=60) == f"{note}\n"
    assert to_markdown(parts, limit=10) == ""


def test_sections_have_headings_whose_every_sign_is_shown():
    shown = rendered(sections_to_markdown([Section("a_b *c* ##", ("one", "two"))]), html=True)
    assert shown == "<h2>a_b *c* ##</h2>\n<p>one</p>\n<p>two</p>\n"
