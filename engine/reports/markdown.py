"""Markdown from values and from text that nobody vouches for."""

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import TypeGuard

from engine.secrets import redact

# Ends of lines and whatever could move a terminal's cursor or turn the reading direction.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SPECIAL = re.compile(r"([\\`*_\[\]|~])")


def plain(text: object, limit: int | None = None) -> str:
    """`text` on one line without control characters or secrets, cut to `limit` characters; ends of lines show as ⏎."""
    lines = " ⏎ ".join(redact(str(text)).strip().splitlines())
    shown = _CONTROLS.sub("·", lines)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def escape(text: object, limit: int | None = None) -> str:
    """`text` so that markdown, a table's cell and HTML all show it and do nothing else."""
    return _SPECIAL.sub(r"\\\1", html.escape(plain(text, limit), quote=False))


def code(text: object) -> str:
    """`text` as code, fit for a table's cell."""
    shown = re.sub(r"(\\+)\|", r"\1¦", plain(text).replace("`", "'"))  # a backslash there would free the bar again
    return "`" + (shown.replace("|", r"\|") or " ") + "`"


def block(text: str) -> str:
    """Lines of text as they are, as a block of code that nothing in them can end."""
    lines = "\n".join(_CONTROLS.sub("·", line) for line in redact(text).splitlines())
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}\n{lines}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table of cells that are markdown already; nothing when there are no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: object) -> str:
    """A number for people: thousands grouped, four significant digits, small ones in powers of ten.

    Several values are separated by commas, and what is no number is shown as it is.
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value))
    if not is_number(value):
        return plain(value, 200)
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"


def share(value: object) -> str:
    """A share between 0 and 1 as a percentage with one digit behind the point."""
    return f"{100 * value:.1f}%" if is_number(value) else plain(value)


def interval(value: object, bounds: object, form: Callable[[object], str] = number) -> str:
    """A value with the ends of its interval behind it, `0.93 (0.89 to 0.96)`; alone where `bounds` is no such pair."""
    if not (isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, (value, *bounds)))):
        return form(value)
    low, high = (form(bound).removesuffix("%") for bound in bounds)
    return f"{form(value)} ({low} to {high})"


def points(value: object) -> str:
    """A difference of two shares in percentage points, with its sign: `+2.3`."""
    return f"{100 * value:+.1f}".replace("-0.0", "+0.0") if is_number(value) else plain(value)


def signed(value: object) -> str:
    """`number` with a sign in front of what is above zero."""
    return f"+{number(value)}" if is_number(value) and value > 0 else number(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be reckoned with: an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration(seconds: float | None) -> str:
    """Seconds for people; – when they are not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
