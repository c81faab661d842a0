import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reports import drawing
from engine.reports.markdown import code, escape, table
from engine.reports.page import Answers, Exchange, Picture, Said, Section, Token, TokenView
from engine.reports.pictures import Bar, bars
from engine.reports.to_html import Folded, Head, to_html

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b",
    "$x$ **bold** _it_ `code`",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<https://example.org>",
    "&lt;b&gt; &amp;amp;",
    '"><svg onload=alert(1)>',
    "</style></title><h1>",
    "{{ 7 * 7 }}{% raw %}",
    "# heading",
    "مرحبا بالعالم",
    "指令：你好",
]
SVG = '<svg viewBox="0 0 1 1"><g></g></svg>'
TAGS = re.compile(
    "html|head|meta|title|style|body|header|h[1-6]|span|ul|li|nav|a|main|dl|div|dt|dd|section|p|details|summary|figure"
    "|figcaption|article|b|i|mark|table|thead|tbody|tr|th|td|small|code|pre|strong|em|svg|g|path|defs|use|text|rect|clippath"
)


class Page(HTMLParser):
    """What a browser would make of a file: its elements with their attributes, and its text by element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [found for name, found in self.elements if name == tag and kind in ("", *found.get("class", "").split())]


def is_harmless(page: Page) -> bool:
    """Whether a page has nothing that runs, loads, or leads anywhere but to the web and to itself."""
    for tag, attributes in page.elements:
        assert TAGS.fullmatch(tag), tag
        assert not any(name.startswith("on") or name in ("src", "action", "formaction") for name in attributes), tag
        for name in ("href", "xlink:href"):
            assert re.match(r"#|https?://|$", attributes.get(name, "")), attributes
    return True


def page_with(text: str) -> Page:
    said = Said("after training", text, (text,), refused=True)
    parts = (
        escape(text),
        table(["name", "value"], [[escape(text), code(text)]]),
        Picture(text, SVG, text),
        TokenView(text, ((text, (Token(text, True), Token(text, False))),)),
        Answers(text, (Exchange(text, text, (said, Said(text, ""))),)),
    )
    head = Head(text, text, "bad", (text,), ((text, escape(text)),))
    return Page(to_html(head, [Section(text, parts), Folded(text, parts, text)]))


@pytest.mark.parametrize("text", NASTY)
def test_text_that_may_be_anything_shows_as_text_everywhere(text):
    page = page_with(text)
    assert is_harmless(page)
    plain, lines = page.text.replace("'", "`"), [part.strip() for part in page.texts]
    assert plain.count(text) >= 20
    assert text in lines


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_an_element_of_its_own(text):
    assert is_harmless(page_with(text))


def test_the_page_needs_nothing_else_and_says_so_to_the_browser():
    html = to_html(Head("Run 1", "passed", "good"), [Section("One", ("a",))])
    page = Page(html)
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "width=device-width" in html
    assert '<html lang="en">' in html
    assert "<title>passed · Run 1</title>" in html
    assert "<script" not in html
    assert not re.search("https?://", html)
    assert page.all("span", "good")


def test_sections_are_linked_by_names_of_their_own_and_folded_ones_stay_closed_and_out_of_the_way():
    sections = [Section("The gate", ("a",)), Folded("The gate", ("b",), "3 rules"), Section("指令", ("c",))]
    page = Page(to_html(Head("t"), sections))
    assert [each["href"] for each in page.all("a")] == ["#the-gate", "#part"]
    assert [each["id"] for each in page.all("section")] == ["the-gate", "part"]
    assert page.all("details", "fold") == [{"class": "fold", "id": "the-gate--2"}]
    assert "3 rules" in page.text


def test_pictures_follow_the_colours_of_the_page_and_have_ids_of_their_own():
    picture = bars("times #0969db", [Bar("train", (3.0,)), Bar("a #0969db", (1.0,))], [("seconds", drawing.CHOSEN)])
    html = to_html(Head("t"), [Section("One", (picture, picture))])
    page = Page(html)
    ids = [found["id"] for tag, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids)) > 2
    used = {name.removeprefix("#") for tag, found in page.elements for at, name in found.items() if at.endswith("href")}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)
    drawn = html[html.index("<svg") : html.rindex("</svg>")]
    assert "var(--chosen)" in drawn
    assert not [colour for colour in drawing.COLOURS if f": {colour}" in drawn]
    assert "a #0969db" in drawn
    assert [each["role"] for each in page.all("div", "drawing")] == ["img", "img"]
    assert all("train: 3" in each["aria-label"] for each in page.all("div", "drawing"))
    assert len(page.all("div", "pictures")) == 1


def test_every_colour_of_the_pictures_has_one_for_the_light_and_one_for_the_dark():
    style = to_html(Head("t"), []).partition("</style>")[0]
    light, _, dark = style.partition("prefers-color-scheme: dark")
    for name in re.findall(r"var\((--\w+)\)", style):
        assert f"{name}: #" in light
        assert f"{name}: #" in dark


def test_a_token_that_is_scored_is_told_apart_and_every_character_of_it_shows():
    view = TokenView("One pair", (("chosen", (Token("Hi", False), Token(" the\n", True), Token("", True))),))
    html = to_html(Head("t"), [Section("One", (view,))])
    assert "<span>Hi</span><mark><span> the⏎</span><span>␣</span></mark>" in html
    assert "tokens are scored" in html


def test_answers_keep_their_lines_and_refusals_have_a_colour_and_a_word():
    said = (
        Said("starting model", "one\ntwo\x1b[31m"),
        Said("after training", "Sorry", ("refused",), refused=True),
        Said("somebody else", ""),
    )
    page = Page(to_html(Head("t"), [Section("One", (Answers("All", (Exchange("harmful", "How?", said),)),))]))
    assert "one\ntwo\\x1b[31m" in page.texts
    assert len(page.all("div", "answer")) == 3
    assert len(page.all("div", "refused")) == 1
    assert [each["class"].split() for each in page.all("div", "answer")] == [
        ["answer", "before"],
        ["answer", "after", "refused"],
        ["answer"],
    ]
    assert "refused" in page.texts
    assert "(nothing)" in page.texts


def test_many_answers_are_folded_long_ones_cut_and_too_many_left_out_with_a_word():
    def exchanges(count: int, text: str) -> Answers:
        return Answers(
            "All", tuple(Exchange("normal", f"prompt {n}", (Said("after", text),) * 3) for n in range(count))
        )

    page = Page(to_html(Head("t"), [Section("One", (exchanges(100, "a short one"),))]))
    assert len(page.all("article")) == 100
    assert "94 more" in page.texts
    assert "left out" not in page.text

    html = to_html(Head("t"), [Section("One", (exchanges(300, "<&" + "字" * 9_998),))])
    page = Page(html)
    assert len(html.encode()) < 1_500_000
    assert "8,000 characters more" in page.text
    assert f"{300 - len(page.all('article'))} more are left out here" in page.text


def test_a_secret_of_the_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "hush-hush-hush")
    page = page_with("my hush-hush-hush key")
    assert "hush-hush" not in page.text
    assert not any("hush-hush" in value for _, found in page.elements for value in found.values())


def test_a_long_table_is_folded_only_beside_other_things_in_a_folded_section():
    def details(kind: type[Section], rows: int, *others: str) -> list[dict[str, str]]:
        long = table(["n"], [[str(n)] for n in range(rows)])
        return Page(to_html(Head("t"), [kind("One", (long, *others))])).all("details")

    assert len(details(Folded, 40, "text")) == 2
    assert len(details(Folded, 40)) == 1
    assert len(details(Folded, 5, "text")) == 1
    assert len(details(Section, 40, "text")) == 0
