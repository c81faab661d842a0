"""What the command `dpo` shows of a run: a live line per stage, the stages' logs, and a table at the end."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from engine.plan import WORKING
from engine.reports import headline
from engine.reports.markdown import duration, plain
from engine.reports.verdict import TITLE, Answer, answer_of
from engine.runs import REPORT, RunRecord
from engine.secrets import Redacting
from engine.stage import Decision, Listener
from engine.store import Artifact
from flows._progress import SEPARATOR, Work, bars

WIDTH = 110  # no table is wider
_STYLES = {"reuse": "dim", "run": "green", "resume": "cyan", "skip": "dim"}
_OUTCOMES = {"reuse": "reused", "run": "made", "resume": "resumed", "skip": "skipped"}


class Terminal(Listener):
    """Shows a run on stderr: live bars in a terminal, one plain line per event elsewhere. Shows the logs there too."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty(), highlight=False)
        self._live = self._console.is_terminal
        self._bars = bars(self._console, disable=not self._live)
        self._bar: TaskID | None = None
        self._work = Work()
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
        self._work = Work()
        self._bar = self._bars.add_task(decision.stage, total=None, parts=self._work.parts)

    def progressed(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._work.reached(done, total, numbers)
            self._bars.update(self._bar, completed=done, total=total or None)

    def finished(self, decision: Decision, artifact: Artifact | None) -> None:
        self._drop_bar()
        self._record.add(decision, artifact)
        made = decision.action in WORKING
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
    """Prints on stdout what became of each stage, whether the run worked, and where its adapter and its report are."""
    console = Console(file=sys.stdout, highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(_stages(record, decisions, console.width))
    answer = answer_of(record.artifact)
    if answer:
        console.print(*_answer(answer, console), sep="\n")
    console.print()
    for name, path in _places(record):
        line = Text.assemble((f"{name}: ", "dim"), plain(in_short(str(path))))
        console.print(line, soft_wrap=True)  # whole, to be copied


def _stages(record: RunRecord, decisions: Sequence[Decision], width: int) -> Table:
    took = f", {record.state} in {duration(record.seconds)}" if record.seconds is not None else ""
    grid = _grid(f"run {record.id}{took}")
    grid.add_column("stage", no_wrap=True)
    grid.add_column("outcome", no_wrap=True)
    grid.add_column("took", justify="right", no_wrap=True)
    grid.add_column("what came of it")
    slowest, times = _slowest(decisions), [_took(each) for each in decisions]
    room = width - len("subsample  outcome  ") - max(map(len, (*times, "slowest"))) - 3
    for decision, shown in zip(decisions, times, strict=True):
        artifact, style = record.artifact(decision.stage), _STYLES[decision.action]
        found = headline(artifact, reused=decision.action == "reuse") if artifact else []
        time = Text(f"{shown}\nslowest", style="bold yellow") if decision is slowest else Text(shown)
        outcome = Text(_OUTCOMES[decision.action], style=style)
        grid.add_row(Text(plain(decision.stage)), outcome, time, _told(found, room))
    return grid


def _grid(title: str) -> Table:
    room = (0, 1, 0, 0)  # right of a cell
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, padding=room)


def _took(decision: Decision) -> str:
    """How long it worked in this run; what was reused or skipped did not."""
    return duration(decision.seconds) if decision.action in WORKING else "–"


def _slowest(decisions: Sequence[Decision]) -> Decision | None:
    """The one that took the time, where several worked."""
    worked = [each for each in decisions if each.action in WORKING and each.seconds is not None]
    return max(worked, key=lambda each: each.seconds or 0.0) if len(worked) > 1 else None


def _told(found: Sequence[tuple[str, str]], room: int) -> Text:
    """What and number, one behind the other, in lines that break between them."""
    lines: list[Text] = []
    for label, shown in found:
        item = Text.assemble((f"{plain(label)}: ", "dim"), plain(shown))
        if lines and lines[-1].cell_len + len(SEPARATOR) + item.cell_len <= room:
            lines[-1].append(SEPARATOR, "dim").append_text(item)
        else:
            lines.append(item)
    return Text("\n").join(lines)


def _places(record: RunRecord) -> Iterator[tuple[str, Path]]:
    """Where the adapter is, the gate's copy before the training's, and the report; what is not there is left out."""
    made = (record.artifact("promote"), record.artifact("train"))
    adapters = (artifact.path / "adapter" for artifact in made if artifact)
    reports = (record.folder / name for name in (Path(REPORT).with_suffix(".html").name, REPORT))
    for name, places in (("adapter", adapters), ("report", reports)):
        if place := next((path for path in places if path.exists()), None):
            yield name, place


def in_short(text: str) -> str:
    """A text with the paths in it as seen from the current folder."""
    return text.replace(f"{Path.cwd()}/", "")


def _answer(answer: Answer, console: Console) -> Iterator[Table | Text]:
    """Its table, where something was evaluated, and its sentences."""
    if answer.rows:
        grid = _measured(answer)
        whole = console.measure(grid, options=console.options.update(max_width=10 * WIDTH)).maximum
        if whole > console.width:
            grid = _measured(answer, between="\n")
        yield Text()
        yield grid
        yield Text()
    yield from (Text(plain(line), style="" if at else "bold") for at, line in enumerate(answer.words))


def _measured(answer: Answer, between: str = " ") -> Table:
    """Numbers with their intervals, and what stands between the two."""
    grid = _grid(TITLE)
    for at, name in enumerate(answer.header):
        head = name.replace(" the one in ", "\nthe one in ")  # no wider than what stands below it
        grid.add_column(head, justify="right" if at else "left")
    for row in answer.rows:
        grid.add_row(*(Text(plain(cell).replace(" (", f"{between}(")) for cell in row))
    return grid
