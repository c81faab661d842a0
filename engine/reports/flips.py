"""What the trained models of two runs answered to the same prompts, and the answers that became others in kind."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from engine.artifact import Artifact
from engine.errors import PipelineError
from engine.reports.measures import kind_in_words
from engine.reports.page import Answers, Exchange, Said

Row = Mapping[str, Any]
Asked = tuple[str, str, str, int]  # the set of prompts, the kind of request, the prompt, which one of its like

SHOWN = 12
UNREADABLE = (PipelineError, OSError, ValueError)  # a table is gone, broken, or of another version
_MOST = 50_000  # answers of a run that are looked at
_POLICY, _ANY = "dpo", ""
# What may have become of an answer, the worst first: the kind of request, the column, and its value now. What is good
# is only told of an answer that says something.
_BAD: tuple[tuple[str, str, bool, str], ...] = (
    ("normal", "refused", True, "newly refused"),
    ("adversarial", "refused", False, "no longer refused"),
    ("normal", "right", False, "no longer right"),
    (_ANY, "empty", True, "now without an answer"),
    (_ANY, "repetitive", True, "now in a loop"),
)
_GOOD: tuple[tuple[str, str, bool, str], ...] = (
    ("adversarial", "refused", True, "now refused"),
    ("normal", "refused", False, "now answered"),
    ("normal", "right", True, "now right"),
)
_FLIPS = (*_BAD, *_GOOD)
_MARKS = {"refused": "refused", "empty": "empty", "repetitive": "in a loop", "right": "right"}


def answers_of(artifact: Artifact) -> dict[Asked, Row]:
    """GENERATIONS rows of the trained model of an evaluate artifact, by what it was asked; in the order it was asked.

    Of more than 50,000 the first ones.

    Raises:
        one of UNREADABLE: they are gone, broken, or not what this version writes.
    """
    found: dict[Asked, Row] = {}
    times: Counter[tuple[str, str, str]] = Counter()
    for row in islice(_rows(artifact), _MOST):
        asked = (row["prompt_set"] or "", row["kind"], row["prompt"])
        found[(*asked, times[asked])] = row
        times[asked] += 1
    return found


def changed_answers(then: Artifact, now: Artifact) -> Answers | None:
    """The prompts whose answer became another in kind: refused, right, empty or in a loop; the worst first.

    Returns:
        At most `SHOWN` of them; the title says of how many. None where there is none, or they cannot be read.
    """
    try:
        before, after = answers_of(then), answers_of(now)
    except UNREADABLE:
        return None
    flipped = [(place, asked) for asked in after if asked in before and (place := _flip(before[asked], after[asked]))]
    flipped.sort()
    if not flipped:
        return None
    title = f"{len(flipped):,} of {len(before.keys() & after.keys()):,} answers"
    title += f"; the first {SHOWN} of these" if len(flipped) > SHOWN else ""
    shown = (_exchange(place, before[asked], after[asked]) for place, asked in flipped[:SHOWN])
    return Answers(title, tuple(shown))


def _rows(artifact: Artifact) -> Iterator[Row]:
    from engine.preferences.schema import GENERATIONS, read_rows  # pyarrow takes a while to import

    for batch in read_rows(artifact.file("generations.parquet"), GENERATIONS):
        yield from (row for row in batch if row["policy"] == _POLICY)


def _flip(before: Row, after: Row) -> int:
    """The place of what happened among `_FLIPS`, from 1 on; 0 where nothing did, or it is not known."""
    told = _BAD if _is(after, "empty") or _is(after, "repetitive") else _FLIPS
    for place, (kind, column, value, _) in enumerate(told, 1):
        if kind in (_ANY, after["kind"]) and _is(after, column) is value and _is(before, column) is (not value):
            return place
    return 0


def _is(row: Row, column: str) -> bool | None:
    """What is said of an answer; None where it is not known. It is refused where the rules or a judge model say so."""
    if column == "refused":
        return bool(row["refused"] or row["judged_refused"])
    known: bool | None = row[column]
    return known


def _exchange(place: int, before: Row, after: Row) -> Exchange:
    words = f"{kind_in_words(after['kind'])} request, {_FLIPS[place - 1][3]}"
    return Exchange(words, after["prompt"], (_said("then", before), _said("now", after)))


def _said(policy: str, row: Row) -> Said:
    marks = [word for column, word in _MARKS.items() if _is(row, column)]
    marks += ["wrong"] if row["right"] is False else []
    return Said(policy, row["generation"] or "", tuple(marks), bool(_is(row, "refused")))
