"""Parts of a page as markdown: for Prefect's pages with pictures, for a terminal without."""

import base64
import re
from collections.abc import Iterable, Sequence

from engine.reports.markdown import escape, plain
from engine.reports.page import Answers, Exchange, Part, Picture, Said, Section, Token, TokenView

_SHOWN_CHARACTERS, _TITLE = 240, 160
_BETWEEN = "\n\n"
_CLOSING = re.compile(r"#(?=#*$)")  # at the end of a heading, where it would be no part of its text
_LEFT_OUT = "*Pictures that did not fit here, and that the run's report has: {count}.*"
_REST = "*The rest did not fit here; the run's report has it.*"


def to_markdown(parts: Iterable[Part], *, pictures: bool = False, limit: int | None = None) -> str:
    """The parts one below the other.

    Args:
        pictures: whether charts are put into the text, as images that are part of it; else they are left out.
        limit: the most bytes of UTF-8. Where it is too much, the words have the first right to it, then the pictures in
            their order, each if it fits; if the words alone are too many, parts go from the end. Either is said, where
            there is room to say it. So what is most telling stands first.
    """
    written = [(part, _written(part, pictures)) for part in parts]
    blocks = [block for _, block in written]
    if limit is None:
        return _joined(blocks)
    if _size(blocks) <= limit:
        return _joined(blocks)
    return _cut(_with_pictures_that_fit([part for part, _ in written], blocks, limit), limit)


def sections_to_markdown(sections: Sequence[Section], *, pictures: bool = False, limit: int | None = None) -> str:
    """Sections with their headings; arguments as `to_markdown`."""
    parts: list[Part] = []
    for section in sections:
        parts += ["## " + _CLOSING.sub(r"\\#", escape(section.title)), *section.parts]
    return to_markdown(parts, pictures=pictures, limit=limit)


def _written(part: Part, pictures: bool) -> str:
    match part:
        case Picture():
            return _picture(part) if pictures else ""
        case TokenView():
            return "\n\n".join([_strong(part.title), *(_tokens(name, tokens) for name, tokens in part.rows)])
        case Answers():
            return "\n\n".join([_strong(part.title), *(_exchange(each) for each in part.exchanges)])
        case _:
            return part


def _picture(picture: Picture) -> str:
    """Title and image; what it shows in words is its alternative text."""
    image = base64.b64encode(picture.svg.encode()).decode()
    return f"{_strong(picture.title)}\n\n![{escape(picture.alt, 300)}](data:image/svg+xml;base64,{image})"


def _strong(words: str) -> str:
    return f"**{escape(words, _TITLE) or '–'}**"


def _tokens(name: str, tokens: Sequence[Token]) -> str:
    """The tokens with spaces between, where lines may break; those that are scored as code, which pages box in."""
    shown = (_boxed(token) if token.scored else _bare(token) for token in tokens)
    return f"*{escape(name, _TITLE) or '–'}*: {' '.join(shown)}"


def _boxed(token: Token) -> str:
    text = plain(token.text) or "␣"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if len(fence) > 1 else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def _bare(token: Token) -> str:
    return escape(token.text) or "␣"


def _exchange(exchange: Exchange) -> str:
    prompt = f"- {_strong(exchange.kind)}: {escape(exchange.prompt, _SHOWN_CHARACTERS)}"
    return "\n".join([prompt, *(f"  - {_said(said)}" for said in exchange.answers)])


def _said(said: Said) -> str:
    marks = f" *({escape(', '.join(said.marks), _TITLE)})*" if said.marks else ""
    return f"{_strong(said.policy)}{marks}: {escape(said.text, _SHOWN_CHARACTERS) or '*(nothing)*'}"


def _with_pictures_that_fit(parts: Sequence[Part], blocks: Sequence[str], limit: int) -> list[str]:
    """All words, the pictures that there is room for beside them, and a word on the others."""
    kept = ["" if isinstance(part, Picture) else block for part, block in zip(parts, blocks, strict=True)]
    room = limit - _size([*kept, _LEFT_OUT.format(count=len(blocks))])
    left_out = 0
    for place, part in enumerate(parts):
        size = len(blocks[place].encode()) + len(_BETWEEN)
        if not isinstance(part, Picture) or not blocks[place]:
            continue
        if size <= room:
            kept[place], room = blocks[place], room - size
        else:
            left_out += 1
    return [*kept, _LEFT_OUT.format(count=left_out)] if left_out else kept


def _cut(blocks: list[str], limit: int) -> str:
    """As many blocks from the first on as fit, and a word on the others."""
    if _size(blocks) <= limit:
        return _joined(blocks)
    kept: list[str] = []
    for block in filter(None, blocks):
        if _size([*kept, block, _REST]) > limit:
            break
        kept.append(block)
    return _joined([*kept, _REST]) if _size([*kept, _REST]) <= limit else ""


def _joined(blocks: Iterable[str]) -> str:
    return _BETWEEN.join(filter(None, blocks)) + "\n"


def _size(blocks: Iterable[str]) -> int:
    return len(_joined(blocks).encode())
