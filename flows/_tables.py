"""Small tables on stdout, drawn for a terminal and in plain columns for a pipe; and JSON that acts on neither."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.reports.markdown import plain

Rows = Sequence[Sequence[str]]

# What JSON leaves as it is though it acts on a terminal, turns the direction of writing, or is no character.
_ACTING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def print_json(value: Any) -> None:
    """Prints a value whole; what could act on a terminal is written as an escape, which stands for the same."""
    print(_ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, indent=1, ensure_ascii=False)))


def print_table(title: str, header: Sequence[str], rows: Rows) -> None:
    """Prints rows under a title. All text may come from data: what acts on a terminal is taken out of it.

    Args:
        header: the columns' names; without one the first column names the rows.
    """
    console = Console(file=sys.stdout, highlight=False)
    cells = [[plain(cell) for cell in row] for row in rows]
    if console.is_terminal:
        console.print(_drawn(plain(title), header, cells))
        console.print()
    else:
        print("\n".join([plain(title), *(f"  {line}" for line in _aligned([header] if header else [], cells)), ""]))


def _drawn(title: str, header: Sequence[str], cells: Rows) -> Table:
    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD if header else None,
        show_header=bool(header),
        show_edge=False,
        pad_edge=False,
    )
    for at in range(len(cells[0]) if cells else 0):
        numbers = bool(header) and all(row[at][:1].isdigit() for row in cells)
        grid.add_column(header[at] if header else "", style="" if at else "dim", justify="right" if numbers else "left")
    for row in cells:
        grid.add_row(*map(Text, row))
    return grid


def _aligned(header: Rows, cells: Rows) -> list[str]:
    """Lines whose columns begin at the same place, in a terminal's cells, of which some characters take two."""
    rows = [*header, *cells]
    widths = [max(cell_len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    padded = ([cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]
