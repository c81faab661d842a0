"""The page of a run, opened as a file in a browser; and the same texts as markdown."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from engine.reports.page import Section
from engine.reports.run import run_report, run_sections
from engine.reports.stages import stage_parts
from engine.reports.to_html import Folded
from engine.reports.to_markdown import sections_to_markdown, to_markdown
from engine.runs import RunRecord
from tasks import STAGES

pytestmark = pytest.mark.slow
MEASURES = Path(__file__).with_name("measures.js").read_text("utf-8")
WIDTHS = {"desktop": 1300, "phone": 390}
FOLDED = "Array.from(document.querySelectorAll('details.fold > summary'), each => each.innerText)"
# Their lines are parted, or their signs made visible, wherever they are shown.
SHOWN_OTHERWISE = {"qtable", "qfence", "qturned", "qcontrol", "qlong"}
LEAST_LETTERS = 11.0  # CSS pixels
NOTHING: dict[str, list[str]] = {"outside": [], "faint": [], "low": []}
# What markdown of ours makes.
TAGS = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "ul", "ol", "li", "em", "strong", "code", "pre", "br", "hr", "img"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.fixture
def open_report(windows: object, look: Callable[..., Any], nights: Any) -> Callable[..., Any]:
    """Opens the second run's page."""
    return lambda **how: look((nights.runs[-1] / "report.html").as_uri(), **how)


@pytest.fixture
def record(nights: Any, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.chdir(nights.root)  # the record names its artifacts from there
    return RunRecord.load(nights.runs[-1])


def measured(looked: Any, name: str) -> Any:
    return looked.page.evaluate(f"({MEASURES}).{name}()")


def headings(looked: Any) -> list[str]:
    return [each.strip() for each in looked.page.locator("main > section > h2").all_inner_texts()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_fits_and_is_legible_and_asks_for_nothing(
    open_report: Callable[..., Any], device: str, dark: bool
) -> None:
    looked = open_report(width=WIDTHS[device], height=844, dark=dark)
    for state in ("folded", "open"):
        if state == "open":
            measured(looked, "open")
        looked.shot(f"report-{device}-{'dark' if dark else 'light'}-{state}")
        assert {name: measured(looked, name) for name in ("outside", "faint", "low")} == NOTHING, f"when it is {state}"
        width = looked.page.evaluate("document.documentElement.scrollWidth")
        assert width <= WIDTHS[device], f"the page scrolls sideways when it is {state}"
    assert (looked.asked, looked.troubles) == ([], [])
    assert looked.is_harmless()


@pytest.mark.parametrize("device", WIDTHS)
def test_the_letters_of_all_charts_can_be_read(open_report: Callable[..., Any], device: str) -> None:
    looked = open_report(width=WIDTHS[device], height=844)
    measured(looked, "open")
    assert measured(looked, "smallest") >= LEAST_LETTERS


def test_the_page_is_dark_where_its_reader_is(open_report: Callable[..., Any]) -> None:
    behind = "({}).ground(document.body).reduce((a, b) => a + b) / 3".format
    assert open_report(dark=True).page.evaluate(behind(MEASURES)) < 60
    assert open_report(dark=False).page.evaluate(behind(MEASURES)) > 200


def test_a_newcomer_finds_the_four_answers_without_opening_anything(
    open_report: Callable[..., Any], record: RunRecord
) -> None:
    looked = open_report(scripts=False, width=390, height=844)
    answers = dict(
        zip(*(looked.page.locator(f".brief {each}").all_inner_texts() for each in ("dt", "dd")), strict=True)
    )
    worked, changed, took, where = answers.values()
    assert next(iter(answers)) == "Did it work?"
    assert worked.startswith(("Yes", "No"))
    assert "train.beta" in changed and "0.1 → 0.3" in changed
    assert any(stage.name in took for stage in STAGES) and " s" in took
    adapter = re.search(r"\S*/adapter", where)
    assert adapter and Path(adapter[0]).is_dir()
    assert all(looked.page.locator(".brief dd").nth(place).is_visible() for place in range(4))


def test_all_sections_and_stages_are_there_and_the_links_lead_to_them(open_report: Callable[..., Any]) -> None:
    looked = open_report()
    assert headings(looked) == ["Did it work?", "The stages", "Answers", "Configuration", "Environment"]
    folded = looked.page.evaluate(FOLDED)
    for stage in STAGES:
        assert any(each.startswith(stage.name) for each in folded), f"nothing is told of {stage.name}"
    assert "could not be told" not in looked.page.content()
    links = looked.page.locator("nav a")
    for place, title in enumerate(headings(looked)):
        links.nth(place).click()
        assert looked.page.locator(":target h2").inner_text() == title
        assert (
            looked.page.locator(":target h2").bounding_box()["y"] >= looked.page.locator("nav").bounding_box()["height"]
        )


def test_a_browser_without_scripts_shows_the_same(open_report: Callable[..., Any]) -> None:
    told = [open_report(scripts=scripts).page.locator("main").inner_text() for scripts in (True, False)]
    assert told[0] == told[1]


def test_hostile_text_shows_as_text_and_makes_no_element(open_report: Callable[..., Any], nights: Any) -> None:
    looked = open_report()
    measured(looked, "open")
    shown = looked.page.locator("body").inner_text()
    for word, text in nights.texts.items():
        assert word in shown, f"nothing of {word} is shown"
        assert text in shown or word in SHOWN_OTHERWISE, f"{word} is not shown as it is"
    assert "\u202e" not in shown and "\x1b" not in shown
    assert looked.page.locator("script, img, iframe, object, embed, form, body base, body link").count() == 0
    assert looked.page.evaluate("document.querySelectorAll('[onload], [onerror], [href^=javascript]').length") == 0


def test_every_picture_has_a_name_and_says_in_words_what_it_shows(open_report: Callable[..., Any]) -> None:
    looked = open_report()
    measured(looked, "open")
    names = looked.page.evaluate(
        "Array.from(document.querySelectorAll('svg'), each => each.closest('[role=img]')?.ariaLabel ?? '')"
    )
    assert len(names) > 20
    assert all(len(name) > 20 for name in names)
    assert len(set(names)) == len(names), "two pictures cannot be told apart"
    sizes = looked.page.evaluate("Array.from(document.querySelectorAll('svg'), each => each.clientWidth)")
    assert all(size > 150 for size in sizes)


def test_tokens_that_are_scored_look_otherwise_than_those_that_are_read(open_report: Callable[..., Any]) -> None:
    looked = open_report()
    measured(looked, "open")
    look_of = (
        "each => { const s = getComputedStyle(each); return [s.textDecorationLine, s.backgroundColor, s.fontWeight]; }"
    )
    scored = looked.page.locator(".tokens p.row mark span").first.evaluate(look_of)
    read = looked.page.locator(".tokens p.row > span").first.evaluate(look_of)
    assert all(one != other for one, other in zip(scored, read, strict=True)), "colour must not be all that tells"
    assert "are scored" in looked.page.locator(".tokens .legend").first.inner_text()


def test_refusals_are_marked_by_a_word(open_report: Callable[..., Any]) -> None:
    looked = open_report()
    measured(looked, "open")
    marked = looked.page.locator(".answer.refused")
    assert marked.count() > 0, "the policy of this test was to refuse something"
    assert all("refused" in each for each in marked.locator("h5").all_inner_texts())
    others = looked.page.locator(".answer:not(.refused) h5").all_inner_texts()
    assert others and not any("refused" in each for each in others)


def test_the_markdown_of_all_pages_holds_no_tag_link_or_table_of_the_data(nights: Any, record: RunRecord) -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    sections = [Section(each.title, each.parts) if isinstance(each, Folded) else each for each in run_sections(record)]
    pages = [run_report(record), sections_to_markdown(sections)]
    for decision in record.decisions:
        pages.append(to_markdown(stage_parts(record.artifact(decision.stage), decision), pictures=True))
    for page in pages:
        shown = reader.render(page)
        tags = set(re.findall(r"</?([a-z][a-z0-9]*)", shown))
        assert tags <= TAGS, f"{tags - TAGS} in a page that begins {page[:60]!r}"
        assert set(re.findall(r'(?:src|href)="([a-z]+:)', shown)) <= {"data:"}
        assert "<td>c</td>" not in shown and "<h1>heading</h1>" not in shown
    assert all(any(word in page for page in pages) for word in nights.texts)
