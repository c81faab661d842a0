"""Numbers of two evaluations beside each other, and how sure it is that they moved: as parts of a page, in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.evaluation.intervals import Difference
from engine.reports.drawing import AFTER, PLAIN
from engine.reports.markdown import escape, points, share, table
from engine.reports.measures import difference_shown, form_of, in_words, is_of_a_policy
from engine.reports.page import Part
from engine.reports.pictures import Mark, Whisker, whiskers

# Short names for a table and a picture, where `in_words` has the whole of it.
_NAMES = {
    "dpo/adversarial/refused": "harmful requests refused",
    "dpo/normal/refused": "normal requests refused",
    "dpo/normal/right": "normal requests put right",
    "dpo/all/empty": "answers that are empty",
    "dpo/all/repetitive": "answers that go in a loop",
    "dpo/all/ended": "answers brought to an end",
    "dpo/adversarial/judged_refused": "harmful refused, by a judge",
    "dpo/normal/judged_refused": "normal refused, by a judge",
    "dpo/all/kl_per_token": "KL from the starting model, nats per token",
    "eval_chosen_less_likely": "chosen answers less likely",
    "eval_log_ratio_per_token/chosen": "chosen answers, nats per token gained",
    "eval_log_ratio_per_token/rejected": "rejected answers, nats per token gained",
}
_NOTE = (
    "Differences of shares are in percentage points. In brackets: 95 % intervals; where one leaves out zero, the "
    "difference is more than chance explains, and **bold**."
)


@dataclass(frozen=True)
class Move:
    """One number then and now.

    Attributes:
        then, now: over what both were asked, where there is a difference; else what each recorded, with its interval.
        difference: now minus then; None where only the two numbers are left.
        over: what they are over where that is less than each recorded its own over, in words; else empty.
    """

    metric: str
    then: str
    now: str
    difference: Difference | None = None
    over: str = ""

    @property
    def sure(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return False
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def in_points(self) -> bool:
        """Whether the difference is one of shares."""
        return self.difference is not None and form_of(self.metric) is share

    @property
    def of_answers(self) -> bool:
        """Whether it is of what the model answers, and not of the held-out pairs."""
        return is_of_a_policy(self.metric)

    @property
    def name(self) -> str:
        """What it is, in words."""
        return _NAMES.get(self.metric) or in_words(self.metric)

    @property
    def words(self) -> str:
        """It all as plain text: `held-out pairs put right 91.2% → 93.4%, +2.2 points (0.4 to 4.1)`."""
        told = f"{self.name}{f' ({self.over})' if self.over else ''} {self.then} → {self.now}"
        if self.difference is None:
            return told
        value, bracket, ends = self._by.partition(" (")
        return f"{told}, {value}{' points' if self.in_points else ''}{bracket}{ends}"

    @property
    def cells(self) -> list[str]:
        """It all as a row of a table, in markdown."""
        by = f"**{escape(self._by)}**" if self.sure else escape(self._by)
        return [escape(self.name), escape(self.then), escape(self.now), by]

    @property
    def _by(self) -> str:
        return difference_shown(self.metric, self.difference.as_dict() if self.difference else None)


@dataclass(frozen=True)
class Moves:
    """What became of the numbers of an evaluation since another one.

    Attributes:
        found: the most telling number first.
        apart: why some metrics mean something else in one of the two than in the other, in words.
        notes: what else has to be known of the numbers, as sentences of plain text.
        caution: what besides the model moves numbers of answers, as a sentence; empty where nothing does.
        same: whether the two evaluations are the same to the byte.
    """

    found: Sequence[Move] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    caution: str = ""
    same: bool = False

    @property
    def compared(self) -> list[Move]:
        """Those with a difference."""
        return [move for move in self.found if move.difference]


def move_parts(moves: Moves) -> Iterator[Part]:
    """A picture of the shares, all numbers as a table, and what is not comparable."""
    shares = [move for move in moves.compared if move.in_points]
    if shares:
        rows = [Whisker(move.name, *_ends(move), AFTER if move.sure else PLAIN) for move in shares]
        yield whiskers("Now minus then, in points", rows, marks=[Mark(0, "no change")], form=points)
    yield table(["", "then", "now", "difference"], [move.cells for move in moves.found])
    if moves.compared:
        yield _NOTE
    notes = [*moves.notes, moves.caution, *_not_comparable(moves.apart)]
    yield "\n".join(f"- {escape(note)}" for note in filter(None, notes))


def move_words(moves: Moves, most: int = 3) -> str:
    """What moved by more than chance explains, shares before all else, or that no share did; as plain text.

    Args:
        most: how many numbers are told.
    """
    if moves.same:
        return "The results are the same: it is the same evaluation of the same model."
    if not moves.compared:
        recorded = "; ".join(move.words for move in moves.found[:most])
        told = " ".join(["Whether the results moved cannot be told.", *moves.notes])
        return f"{told} Recorded were: {recorded}." if recorded else told
    sure = [move for move in moves.compared if move.sure]
    shares = [move for move in sure if move.in_points]
    if not shares:
        names = "; ".join(move.name for move in sure[:most])
        others = f" Other numbers did, most of all: {names}." if sure else ""
        return f"No share moved beyond chance: {moves.compared[0].words}.{others}"
    more = f"; and {len(shares) - most:,} more" if len(shares) > most else ""
    caution = f" {moves.caution}" if moves.caution and any(move.of_answers for move in shares[:most]) else ""
    return f"Moved beyond chance: {'; '.join(move.words for move in shares[:most])}{more}.{caution}"


def _ends(move: Move) -> tuple[float, float | None, float | None]:
    found = move.difference or Difference(0.0)
    return found.value, found.low, found.high


def _not_comparable(apart: Mapping[str, str]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for metric, why in apart.items():
        reasons.setdefault(why, []).append(_NAMES.get(metric) or in_words(metric))
    for why, names in reasons.items():
        yield f"Not comparable: {', '.join(names)} ({why})."
