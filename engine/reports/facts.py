"""How an artifact was made, in a narrow table: a name, and a few pieces of what is to be said of it."""

from collections.abc import Mapping, Sequence

from engine.reports.markdown import escape, is_number, number, table

_LONGEST = 60  # characters of a word that comes from a configuration


def facts(title: str, pieces: Mapping[str, Sequence[str]]) -> str:
    """A row for each name that any piece is known of, which are markdown; nothing without such rows."""
    rows = [[escape(name), ", ".join(filter(None, known))] for name, known in pieces.items() if any(known)]
    return f"**{escape(title)}**\n\n{table(['', ''], rows)}" if rows else ""


def counted(value: object, what: str = "") -> str:
    """A number with what it counts behind it, as markdown; nothing where it is none."""
    return f"{escape(number(value))} {what}".strip() if is_number(value) else ""


def named(value: object, form: str = "{}") -> str:
    """A word of a configuration within `form`, as markdown; nothing where it is empty or none."""
    return form.format(escape(value, _LONGEST)) if isinstance(value, str) and value else ""
