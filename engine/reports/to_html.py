"""A page as one HTML file that needs nothing else: no network, no script, no other file.

What is data is escaped by the template; markdown goes through a reader that knows no HTML. Even a text that slipped
through both could load and run nothing, since the page's own policy forbids it.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.reports import drawing
from engine.reports.markdown import number
from engine.reports.markdown_to_html import as_html
from engine.reports.measures import POLICIES
from engine.reports.page import Answers, Exchange, Part, Picture, Section, Token, TokenView
from engine.secrets import outgoing, redact, visible

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_WEB = Path(__file__).parent / "web"
_NAMES = ("paper", "ink", "muted", "faint", "chosen", "rejected", "before", "after", "service", "plain")
_VARIABLES = {colour: f"var(--{name})" for colour, name in zip(drawing.COLOURS, _NAMES, strict=True)}
_COLOUR = re.compile("|".join(_VARIABLES))
_TAG = re.compile(r"<[^>]*>")
_REFERENCE = re.compile(r'(?<= id=")|(?<=href="#)|(?<=url\(#)')
# Whose answer has a colour, by the name of that in the charts.
_SPEAKERS = {POLICIES["start"]: "before", POLICIES["dpo"]: "after", POLICIES["service"]: "service"}
_SPEAKERS |= {side: side for side in ("chosen", "rejected")}
_OPEN = 6  # exchanges that are shown at once; the others are folded
_MOST_CHARACTERS = 2_000  # of one answer
_MOST_BYTES = 450_000  # of all answers of one part


@dataclass(frozen=True)
class Folded(Section):
    """A section that is closed until somebody opens it, and belongs to the one before it.

    Attributes:
        summary: what is to be known without opening it, as plain text.
    """

    summary: str = ""


@dataclass(frozen=True)
class Head:
    """What a page begins with; all but the answers is plain text.

    Attributes:
        badge: the verdict in a word or two.
        tone: what that means.
        lines: facts below the title.
        brief: questions, and their answers in markdown.
    """

    title: str
    badge: str = ""
    tone: Literal["good", "bad", "open"] = "open"
    lines: Sequence[str] = ()
    brief: Sequence[tuple[str, str]] = ()


def to_html(head: Head, sections: Sequence[Section]) -> str:
    """The whole file. Text that may be anything shows as text; pictures follow the reader's light or dark."""
    from markupsafe import Markup

    names, counter = _anchors(sections), itertools.count()
    shown = [
        {
            "id": name,
            "title": _line(section.title),
            "summary": _line(section.summary) if isinstance(section, Folded) else None,
            "blocks": list(_blocks(section, counter)),
        }
        for name, section in zip(names, sections, strict=True)
    ]
    return _template().render(
        head=head,
        brief=[(question, as_html(answer, 3)) for question, answer in head.brief],
        sections=shown,
        style=Markup((_WEB / "style.css").read_text("utf-8")),
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"lines": outgoing, "line": _line, "number": number}
    return environment.get_template("report.html.jinja")


def _line(text: str) -> str:
    """A text that is shown on one line."""
    return visible(redact(text))


def _anchors(sections: Sequence[Section]) -> list[str]:
    """A name of its own for each section, to be linked to."""
    seen: dict[str, int] = {}
    names = []
    for section in sections:
        name = re.sub(r"[^a-z0-9]+", "-", redact(section.title).lower()).strip("-") or "part"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}--{seen[name]}")
    return names


def _blocks(section: Section, counter: "itertools.count[int]") -> Iterator[dict[str, Any]]:
    """Its parts as the template takes them; pictures that follow each other are one block."""
    folded = isinstance(section, Folded)
    level, folding = 4 if folded else 3, folded and len(section.parts) > 1
    for pictures, group in itertools.groupby(section.parts, lambda part: isinstance(part, Picture)):
        if pictures:
            drawn = (part for part in group if isinstance(part, Picture))
            yield {"kind": "pictures", "figures": [(each, _svg(each.svg, next(counter))) for each in drawn]}
        else:
            yield from (_block(part, level, folding) for part in group)


def _block(part: Part, level: int, folding: bool) -> dict[str, Any]:
    match part:
        case TokenView():
            rows = [(name, list(_runs(tokens))) for name, tokens in part.rows]
            return {"kind": "tokens", "title": part.title, "rows": rows}
        case Answers():
            return {"kind": "answers", "title": part.title, **_fitting(part.exchanges)}
        case _:
            return {"kind": "markdown", "html": as_html(str(part), level, folding=folding)}


def _svg(svg: str, place: int) -> "Markup":
    """A drawing whose colours follow the page's, and whose ids are its own: where one picture is folded away, another
    could not draw with the shapes of that one.
    """
    from markupsafe import Markup

    def own(tag: re.Match[str]) -> str:
        named = _REFERENCE.sub(f"p{place}-", tag.group(0))
        return _COLOUR.sub(lambda found: _VARIABLES[found.group(0)], named)

    return Markup(_TAG.sub(own, svg))


def _runs(tokens: Sequence[Token]) -> Iterator[tuple[bool, list[str]]]:
    """Neighbours that are all scored or all not, each token as it can be shown."""
    for scored, group in itertools.groupby(tokens, lambda token: token.scored):
        yield scored, [_line(token.text.replace("\n", "⏎")) or "␣" for token in group]


def _fitting(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """As many exchanges as a page can bear, each text cut to what people read, and how many are left out."""
    shown: list[dict[str, Any]] = []
    spent = 0
    for exchange in exchanges:
        said = [(each, *_cut(each.text), _SPEAKERS.get(each.policy, "")) for each in exchange.answers]
        prompt, more = _cut(exchange.prompt)
        spent += len(prompt.encode()) + sum(len(text.encode()) for _, text, *_ in said)
        if spent > _MOST_BYTES:
            break
        shown.append({"kind": exchange.kind, "prompt": prompt, "more": more, "answers": said})
    return {"shown": shown[:_OPEN], "folded": shown[_OPEN:], "left_out": len(exchanges) - len(shown)}


def _cut(text: str) -> tuple[str, int]:
    """A text as it can be shown, in its lines, and how many characters of it are left out."""
    return outgoing(text[:_MOST_CHARACTERS]), max(0, len(text) - _MOST_CHARACTERS)
