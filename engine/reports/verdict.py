"""Did it work? One table: before and after, against chance, against the model in service, and the gate's verdict."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from engine.errors import StoreError
from engine.reports.behind import behind
from engine.reports.gate import comparison_words, differences, gate_words
from engine.reports.markdown import escape, is_number, number, table
from engine.reports.measures import difference_shown, shown
from engine.reports.training import monitor_words
from engine.store import Artifact

T = TypeVar("T")

TITLE = "Did it work?"
HEADER = ("", "out of", "before", "after training", "against the one in service")
_ANSWERS = {
    "harmful requests refused": "adversarial/refused",
    "normal requests refused": "normal/refused",
    "normal requests answered right": "normal/right",
    "answers that are empty": "all/empty",
    "answers that go in a loop": "all/repetitive",
}
_ACCURACY, _BASELINE = "eval_rewards/accuracies", "eval_length_baseline"
_START = f"start/{_ACCURACY}"  # of a model without a reference alone
_BULLET, _UNKNOWN = "- ", "–"
_NOTE = "In brackets: 95 % intervals, in which the true number is likely to be."
_NOTE_ON_POINTS = f"{_NOTE} The last column is in percentage points."


@dataclass(frozen=True)
class Answer:
    """What the table says, as plain text.

    Attributes:
        header: names of the columns; the last is there only where a model in service was compared with.
        rows: as long as the header each. Empty where nothing was evaluated.
        words: sentences to be shown below the table.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.words)


def did_it_work(
    evaluated: Artifact | None, compared: Artifact | None = None, promoted: Artifact | None = None
) -> Answer:
    """The answer from the artifacts of `evaluate`, `compare` and `promote`; what is missing or broken is left out."""
    against = _read(lambda: differences(compared)) or {}
    rows = _read(lambda: tuple(_rows(evaluated, against))) or () if evaluated else ()
    words = _read(lambda: gate_words(promoted)) or [] if promoted else []
    words += [_read(lambda: comparison_words(compared)) or ""] if compared else []
    words += [_NOTE_ON_POINTS if against else _NOTE] if rows else []
    width = len(HEADER) if against else len(HEADER) - 1
    return Answer(HEADER[:width], tuple(row[:width] for row in rows), tuple(filter(None, words)))


def answer_of(find: Callable[[str], Artifact | None]) -> Answer:
    """The answer of a run, and what the monitor saw while the model was trained.

    Args:
        find: the artifact that the run has for a stage, as `RunRecord.artifact`.
    """
    answer, promoted, trained = (
        did_it_work(find("evaluate"), find("compare"), find("promote")),
        find("promote"),
        find("train"),
    )
    if not answer:
        return answer
    gate = () if promoted else ("The gate was not asked.",)
    seen = _read(lambda: monitor_words(trained)) or [] if trained else []
    return replace(answer, words=(*gate, *answer.words, *seen))


def answer_behind(promoted: Artifact) -> Answer:
    """The answer that a verdict of the gate rests on, from what `promote` has read, where that is still there."""
    return did_it_work(behind(promoted, "evaluate"), behind(promoted, "compare"), promoted)


def as_markdown(answer: Answer) -> str:
    """The same in markdown, in two tables, since Prefect's pages cut off what is wide; nothing where there is none."""
    cells = [[escape(cell) for cell in row] for row in answer.rows]
    own = [[f"{label} ({of})" if of != _UNKNOWN else label, before, after] for label, of, before, after, *_ in cells]
    against = [[row[0], row[-1]] for row in cells if len(row) == len(HEADER) and row[-1] != _UNKNOWN]
    words = [f"{_bullet(line)}{escape(line.removeprefix(_BULLET))}" for line in answer.words]
    tables = (table([answer.header[0], *answer.header[2:4]], own), table(["", HEADER[-1]], against))
    return "\n\n".join(part for part in (*tables, *words) if part)


def _rows(evaluated: Artifact, against: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    metrics = evaluated.metrics
    for label, name in _ANSWERS.items():
        before, after = f"start/{name}", f"dpo/{name}"
        if is_number(metrics.get(after)):
            yield label, _asked(metrics, name), shown(metrics, before), shown(metrics, after), _against(against, after)
    if is_number(metrics.get(_ACCURACY)):
        pairs = _count(metrics.get("eval_pairs"))
        before, after = shown(metrics, _START), shown(metrics, _ACCURACY)
        yield "held-out pairs put right", pairs, before, after, _against(against, _ACCURACY)
        yield from _baseline(metrics, pairs)


def _asked(metrics: Mapping[str, Any], name: str) -> str:
    """Of how many requests a rate is; of how many the right answer is known is not recorded."""
    kind, _, rate = name.partition("/")
    return _UNKNOWN if rate == "right" else _count(metrics.get(f"dpo/{kind}/count"))


def _baseline(metrics: Mapping[str, Any], pairs: str) -> Iterator[tuple[str, ...]]:
    longer = metrics.get("eval_longer_wins")  # all that an artifact of an earlier version has of it
    if _BASELINE not in metrics and is_number(longer):
        metrics = {_BASELINE: max(longer, 1 - longer)}
    if is_number(metrics.get(_BASELINE)):
        yield "… by their length alone", pairs, "–", shown(metrics, _BASELINE), "–"


def _against(against: Mapping[str, Any], metric: str) -> str:
    return difference_shown(metric, against.get(metric))


def _count(value: object) -> str:
    return number(value) if is_number(value) else _UNKNOWN


def _bullet(line: str) -> str:
    return _BULLET if line.startswith(_BULLET) else ""


def _read(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except StoreError:
        return None
