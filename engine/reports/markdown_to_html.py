"""Markdown of ours as HTML: without a tag of the text's own, and with tables that a phone can show.

The reader knows no HTML, so whatever is not meant as markdown shows as text.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from engine.reports.markdown import number

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token as Mark
    from markupsafe import Markup

_DIGITS = r"[+\-−]?[\d.,]+(?:e[+\-]?\d+)?"
_UNITS = "%|s|points|min \\d+ s|h \\d+ min"
_NUMBER = re.compile(rf"{_DIGITS}(?: ?(?:{_UNITS}))?(?: \({_DIGITS}%?(?: to {_DIGITS}%?)?\))?|–|")
_BRACKETS = re.compile(rf"(.*\S )(\({_DIGITS} to {_DIGITS}\))")
_OPEN_ROWS = 12  # of a table that may be folded
_PHONE, _BETWEEN = 46, 2  # letters that a phone has room for beside each other, and those that two columns lie apart


def as_html(text: str, level: int, *, folding: bool = False) -> "Markup":
    """Markdown as HTML; its headings begin at `level`, and a line that is bold as a whole is one of them.

    Columns of numbers have the class `number`. A table that is too wide for a phone has the class `stack`, and each
    cell of it its column's name as `data-label`.

    Args:
        folding: whether tables that are long are closed until somebody opens them.
    """
    from markupsafe import Markup

    reader = _reader()
    marks = reader.parse(text)
    for place, mark in enumerate(marks):
        if mark.type in ("paragraph_open", "heading_open", "td_open", "th_open"):
            mark.attrSet("dir", "auto")
        if mark.type in ("heading_open", "heading_close"):
            mark.tag = f"h{min(6, max(level, int(mark.tag[1:])))}"
        if mark.type == "paragraph_open" and _is_title(marks[place + 1]):
            mark.tag = marks[place + 2].tag = f"h{level}"
            inline = marks[place + 1]
            inline.children = (inline.children or [])[1:-1]
    for table in _tables(marks):
        _align(table.rows)
        wide = _is_wide(table.rows)
        if wide:
            _name_cells(table.rows)
        long = folding and len(table.rows) - 1 > _OPEN_ROWS
        table.opening.meta = table.closing.meta = {"rows": len(table.rows) - 1 if long else 0, "wide": wide}
    return Markup(reader.renderer.render(marks, reader.options, {}))


@dataclass(frozen=True)
class _Cell:
    """What opens a cell, and what stands in it."""

    opening: "Mark"
    inline: "Mark"

    @property
    def text(self) -> str:
        return "".join(mark.content for mark in self.inline.children or [])


@dataclass
class _Table:
    """What opens and closes a table, and its rows, the header first."""

    opening: "Mark"
    closing: "Mark"
    rows: list[list[_Cell]] = field(default_factory=list)


def _is_title(inline: "Mark") -> bool:
    inline.children = [mark for mark in inline.children or [] if mark.type != "text" or mark.content]
    kinds = [mark.type for mark in inline.children]
    return len(kinds) > 2 and kinds[0] == "strong_open" and kinds.index("strong_close") == len(kinds) - 1


def _tables(marks: "Sequence[Mark]") -> Iterator[_Table]:
    for place, mark in enumerate(marks):
        if mark.type == "table_open":
            table = _Table(mark, mark)
        elif mark.type == "tr_open":
            table.rows.append([])
        elif mark.type in ("th_open", "td_open"):
            table.rows[-1].append(_Cell(mark, marks[place + 1]))
        elif mark.type == "table_close":
            table.closing = mark
            yield table


def _align(rows: Sequence[Sequence[_Cell]]) -> None:
    """Sets the columns that hold numbers alone flush right, with the intervals behind them smaller."""
    for head, *body in itertools.zip_longest(*rows):
        cells = [cell for cell in body if cell is not None]
        if any(cell.text for cell in cells) and all(_NUMBER.fullmatch(cell.text) for cell in cells):
            for cell in (head, *cells):
                cell.opening.attrSet("class", "number")
            for cell in cells:
                cell.inline.children = [part for mark in cell.inline.children or [] for part in _parted(mark)]


def _parted(mark: "Mark") -> "Iterator[Mark]":
    """A number and the interval behind it, apart."""
    from markdown_it.token import Token

    found = _BRACKETS.fullmatch(mark.content) if mark.type == "text" else None
    if found is None:
        yield mark
        return
    yield Token("text", "", 0, content=found[1])
    yield Token("small_open", "small", 1)
    yield Token("text", "", 0, content=found[2])
    yield Token("small_close", "small", -1)


def _is_wide(rows: Sequence[Sequence[_Cell]]) -> bool:
    """Whether a table has columns that a phone has no room for; one of names and values alone wraps well."""
    columns = list(itertools.zip_longest(*rows))
    widths = [max(len(cell.text) for cell in column if cell is not None) for column in columns]
    return len(columns) > 2 and sum(widths) + _BETWEEN * (len(columns) - 1) > _PHONE


def _name_cells(rows: Sequence[Sequence[_Cell]]) -> None:
    """Gives each cell its column's name, and one box for all that stands in it."""
    from markdown_it.token import Token

    header, *body = rows
    for row in body:
        for head, cell in zip(header, row, strict=False):
            cell.opening.attrSet("data-label", head.text)
            if cell.text in ("", "–"):
                cell.opening.attrJoin("class", "none")
            inside = cell.inline.children or []
            cell.inline.children = [Token("span_open", "span", 1), *inside, Token("span_close", "span", -1)]


@cache
def _reader() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "html_block", "html_inline"])
    reader.validateLink = _is_harmless  # type: ignore[assignment,method-assign]
    reader.add_render_rule("table_open", _table_open)
    reader.add_render_rule("table_close", _table_close)
    return reader


def _table_open(renderer: object, marks: "Sequence[Mark]", place: int, *_: object) -> str:
    """A box of its own to scroll in, so that the page never has to."""
    rows, wide = marks[place].meta["rows"], marks[place].meta["wide"]
    fold = f"<details><summary>{number(rows)} rows</summary>" if rows else ""
    kind = ' class="stack"' if wide else ""
    return f'{fold}<div class="scroll" tabindex="0"><table{kind}>\n'


def _table_close(renderer: object, marks: "Sequence[Mark]", place: int, *_: object) -> str:
    return f"</table></div>{'</details>' if marks[place].meta['rows'] else ''}\n"


def _is_harmless(link: str) -> bool:
    """Whether a link stays on the page or leads to the web."""
    try:
        return link.startswith("#") or urlsplit(link).scheme in ("http", "https")
    except ValueError:
        return False
