"""What the command `dpo` shows of a run: a live line per stage, the stages' logs, and a table at the end."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from engine.reports import headline
from engine.reports.markdown import duration, number, plain
from engine.reports.verdict import TITLE, Answer, answer_of
from engine.runs import RunRecord
from engine.secrets import Redacting
from engine.stage import Decision, Listener
from engine.store import Artifact

WIDTH = 110  # no table is wider
_OUTCOMES = {"reuse": "reused", "run": "made", "resume": "resumed", "skip": "skipped"}


class Terminal(Listener):
    """Shows a run on stderr: live bars in a terminal, one plain line per event elsewhere. Shows the logs there too."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty(), highlight=False)
        self._live = self._console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._bar: TaskID | None = None
        self._logs = _Logs(self._console)

    def __enter__(self) -> Self:
        logging.getLogger("dpo").addHandler(self._logs)
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop_bar()
        self._bars.stop()
        logging.getLogger("dpo").removeHandler(self._logs)

    def started(self, decision: Decision) -> None:
        self._say(f"{decision.stage:<10} {'resumes' if decision.action == 'resume' else 'runs':<8} {decision.why}")
        self._drop_bar()
        self._bar = self._bars.add_task(decision.stage, total=None, numbers="")

    def progressed(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if self._bar is not None:
            shown = "  ".join(f"{name} {number(value)}" for name, value in numbers.items())
            self._bars.update(self._bar, completed=done, total=total or None, numbers=shown)

    def finished(self, decision: Decision, artifact: Artifact | None) -> None:
        self._drop_bar()
        self._record.add(decision, artifact)
        made = decision.action in ("run", "resume")
        what = f"in {duration(decision.seconds)}, into {decision.path}" if made else decision.why
        self._say(f"{decision.stage:<10} {_OUTCOMES[decision.action]:<8} {what}")

    def _say(self, line: str) -> None:
        self._console.print(Text(plain(line)))

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None


class _Logs(logging.Handler):
    """Writes log records above the live bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.addFilter(Redacting())
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            style = "yellow" if record.levelno >= logging.WARNING else ""
            self._console.print(Text(f"{record.name}: {record.getMessage()}", style=style))
        except Exception:  # as every handler of the standard library does
            self.handleError(record)


def show_results(record: RunRecord, decisions: Sequence[Decision]) -> None:
    """Prints on stdout the headline numbers of a finished run as a table, and then whether it worked."""
    console = Console(file=sys.stdout, highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(_numbers(record, decisions))
    answer = answer_of(record.artifact)
    if answer:
        console.print(*_answer(answer), sep="\n")


def _numbers(record: RunRecord, decisions: Sequence[Decision]) -> Table:
    grid = Table("stage", "outcome", "took", "", "number", title=f"run {record.id}", title_justify="left")
    for decision in decisions:
        artifact = record.artifact(decision.stage)
        reused = decision.action == "reuse"
        lines = (headline(artifact, reused=reused) if artifact else []) or [("", "")]
        own = (decision.stage, _OUTCOMES[decision.action], duration(decision.seconds))
        for label, shown in lines:
            grid.add_row(*(Text(plain(cell)) for cell in (*own, label, shown)))
            own = ("", "", "")
    return grid


def _answer(answer: Answer) -> Iterator[Table | Text]:
    """Its table, where something was evaluated, and its sentences."""
    if answer.rows:
        grid = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for at, name in enumerate(answer.header):
            grid.add_column(name, justify="right" if at else "left", no_wrap=at == 0)
        for row in answer.rows:
            grid.add_row(*(Text(plain(cell)) for cell in row))
        yield Text()
        yield grid
        yield Text()
    yield from (Text(plain(line), style="" if at else "bold") for at, line in enumerate(answer.words))
