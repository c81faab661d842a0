"""What came of the faults, as tables for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

GREEN, RED, NOT_RUN, ELSEWHERE = "green", "red", "not run", "elsewhere"


@dataclass(frozen=True)
class Check:
    """What came of one fault.

    Attributes:
        name: the fault.
        state: `green`, `red`, `not run` (this machine cannot), or `elsewhere` (a test says so; see the reason).
        reason: what was seen, or why it is red or was not run.
    """

    name: str
    state: str
    reason: str


def verdict(name: str, problems: Iterable[str], seen: str) -> Check:
    """Green with what was seen when there is no problem, else red with the problems."""
    told = list(dict.fromkeys(problems))
    shown = "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")
    return Check(name, RED, shown) if told else Check(name, GREEN, seen)


def grid(
    hits: Mapping[tuple[str, str], int], rows: Sequence[str], columns: Sequence[str], possible: set[tuple[str, str]]
) -> str:
    """A table of counts with sums; `–` where a row never comes to a column's point.

    Args:
        hits: by (row, column).
        possible: the cells that can be hit at all.
    """

    def cell(row: str, column: str) -> str:
        return str(hits.get((row, column), 0)) if (row, column) in possible or (row, column) in hits else "–"

    body = [[row, *(cell(row, each) for each in columns), str(_sum(hits, row=row))] for row in rows]
    last = ["", *(str(_sum(hits, column=each)) for each in columns), str(_sum(hits))]
    return _aligned([["stage", *columns, "kills"], *body, last])


def _sum(hits: Mapping[tuple[str, str], int], row: str = "", column: str = "") -> int:
    return sum(count for (at, of), count in hits.items() if row in ("", at) and column in ("", of))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Headings in as many lines as they have words, so that a column is no wider than a word."""
    head = [text.replace(", ", " ").split() for text in lines[0]]
    high = max(map(len, head))
    raised = [[("", *[""] * (high - len(words)), *words)[1:][line] for words in head] for line in range(high)]
    shown = [*raised, *map(list, lines[1:])]
    widths = [max(len(line[at]) for line in shown) for at in range(len(lines[0]))]
    rule = "─" * (sum(widths) + 2 * len(widths) - 2)
    text = [
        "  ".join(_set(cell, width, at) for at, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in shown
    ]
    return "\n".join([*text[:high], rule, *text[high:-1], rule, text[-1]])


def _set(cell: str, width: int, at: int) -> str:
    return cell.ljust(width) if at == 0 else cell.rjust(width)


def listing(checks: Sequence[Check]) -> str:
    """A line for each check: state, name, reason."""
    wide = max((len(check.name) for check in checks), default=0)
    return "\n".join(f"{check.state:<9}  {check.name:<{wide}}  {check.reason}" for check in checks)


def summary(checks: Sequence[Check]) -> str:
    """How many there are of each state, in one line."""
    counted = {state: sum(check.state == state for check in checks) for state in (GREEN, RED, NOT_RUN, ELSEWHERE)}
    return ", ".join(f"{count} {state}" for state, count in counted.items() if count)
