"""What Prefect's own pages show of a run, in a browser: both of its UIs draw markdown in their own way."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tasks import STAGES

# The browser first: where there is none, no server is started either.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("windows")]
STAGE_KEYS = [f"dpo-{stage.name}" for stage in STAGES]
PICTURES = {"dpo-train": 6, "dpo-evaluate": 5, "dpo-tokenize": 2, "dpo-sft": 3, "dpo-reference": 1, "dpo-run": 2}
# Boxes of tables whose right end cannot be seen or scrolled to.
CUT_OFF = """
Array.from(document.querySelectorAll("table"), table => {
  for (let box = table; box; box = box.parentElement)
    if (box.scrollWidth > box.clientWidth + 1 && /hidden|clip/.test(getComputedStyle(box).overflowX))
      return table.innerText.slice(0, 60);
  return "";
}).filter(Boolean)
"""


@pytest.fixture
def show(look: Callable[..., Any], served: Any) -> Callable[..., Any]:
    """Opens a path of the UI and waits until a text is there."""

    def show(path: str, text: str, **how: Any) -> Any:
        opened = look(f"{served.address}{path}", **{"height": 1_800} | how)
        opened.page.get_by_text(text).first.wait_for(timeout=30_000)
        return opened

    return show


@pytest.fixture
def page_of(show: Callable[..., Any], served: Any) -> Callable[..., Any]:
    """Opens the page of what the run published under a key."""
    return lambda key, text, **how: show(f"/artifacts/artifact/{served.artifacts[key]['id']}", text, **how)


def wait_for_pictures(looked: Any, least: int) -> None:
    drawn = "least => { const all = [...document.images].filter(each => each.naturalWidth > 100);"
    drawn += " return all.length >= least && [...document.images].every(each => each.complete); }"
    looked.page.wait_for_function(drawn, arg=least, timeout=15_000)


def test_the_runs_page_names_what_ran_and_lists_all_that_it_published(show: Callable[..., Any], served: Any) -> None:
    run = served.flow_run
    looked = show(f"/runs/flow-run/{run['id']}", "9 Task runs")
    shown = looked.page.locator("body").inner_text()
    assert run["name"] in shown and "beta 0.3" in run["name"]
    assert {"beta:0.3"} <= set(run["tags"]) and "beta:0.3" in shown
    assert any(tag.startswith("key:") for tag in run["tags"])
    looked.page.get_by_text("Artifacts", exact=True).first.click()
    looked.page.get_by_text("dpo-promote").first.wait_for()
    shown = looked.page.locator("body").inner_text()
    assert all(key in shown for key in (*STAGE_KEYS, "dpo-run", "dpo-report", "dpo-train-progress"))
    looked.shot("prefect-run")
    assert looked.is_harmless()


@pytest.mark.parametrize("key", [*STAGE_KEYS, "dpo-run"])
def test_each_page_is_drawn_whole_and_runs_nothing(page_of: Callable[..., Any], key: str) -> None:
    looked = page_of(key, {"dpo-run": "Open the whole report"}.get(key, "All it recorded"), height=4_000)
    wait_for_pictures(looked, PICTURES.get(key, 0))
    looked.shot(f"prefect-{key}")
    assert looked.page.evaluate(CUT_OFF) == []
    assert looked.is_harmless()
    assert looked.page.evaluate("document.querySelectorAll('[onerror], [onload], a[href^=javascript]').length") == 0
    broken = looked.page.evaluate("[...document.images].filter(each => !each.naturalWidth).length")
    assert broken == 0, "a picture is not drawn"


@pytest.mark.parametrize("ui", ["", "/v2"])
def test_hostile_text_shows_as_text_in_both_uis(show: Callable[..., Any], served: Any, ui: str) -> None:
    looked = show(f"{ui}/artifacts/artifact/{served.artifacts['dpo-run']['id']}", "Environment")
    wait_for_pictures(looked, PICTURES["dpo-run"])
    shown = looked.page.locator("body").inner_text()
    assert "<img src=x onerror=window.pwned=6> | a | b | ``` ](javascript:window.pwned=7)" in shown
    assert any(text in shown for text in served.texts.values())
    assert served.runs[-1].name in shown
    assert "javascript:" not in " ".join(looked.page.evaluate("Array.from(document.links, each => each.href)"))
    assert looked.is_harmless()
    looked.shot(f"prefect{ui.replace('/', '-')}-dpo-run-whole")


def test_a_page_fits_a_phone(page_of: Callable[..., Any]) -> None:
    looked = page_of("dpo-run", "Open the whole report", width=390, height=844)
    looked.shot("prefect-dpo-run-phone")
    assert looked.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert looked.page.evaluate(CUT_OFF) == []


def test_a_description_shows_every_sign_of_a_name(page_of: Callable[..., Any], served: Any) -> None:
    looked = page_of("dpo-report", "Open the report")
    assert served.runs[-1].name in looked.page.locator("body").inner_text()


@pytest.mark.parametrize("key", ["dpo-report", "dpo-run"])
def test_the_link_to_the_report_opens_it(page_of: Callable[..., Any], served: Any, key: str) -> None:
    words = "Open the report" if key == "dpo-report" else "Open the whole report"
    looked = page_of(key, words)
    with looked.page.context.expect_page() as opened:
        looked.page.get_by_role("link", name=words).click()
    report = opened.value
    report.locator("h1").wait_for()
    assert served.runs[-1].name in report.locator("h1").inner_text()
    assert report.locator("dt").first.inner_text() == "Did it work?"
    assert report.evaluate("'pwned' in window") is False


def test_the_progress_said_step_loss_margin_and_the_time_left(served: Any) -> None:
    told = [each.partition(": ")[2] for each in served.progress if each.startswith("dpo-train-progress")]
    live = [each for each in told if each.endswith(" left")]
    assert live, f"the time left was never told: {told}"
    assert all(re.match(r"step [\d,]+ of 600 · loss \S+ · margin \S+ · [\d,.]+ tokens/s", each) for each in told)
    assert re.search(r" · done in [\d.]+ (s|min)", told[-1])


def test_the_page_of_the_progress_shows_its_last_word(page_of: Callable[..., Any], served: Any) -> None:
    looked = page_of("dpo-train-progress", "step 600 of 600")
    assert "100" in looked.page.locator("body").inner_text()
    looked.shot("prefect-progress")
