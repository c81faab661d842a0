"""A format of comparisons: where the values of a row are, and how they become pairs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from engine.preferences.advice import ignoring, reads_texts, setting
from engine.preferences.comparisons import Comparison, Pair, Ranking, Refused, number, pairs, with_system
from engine.preferences.conversations import check_text_alone
from engine.preferences.ledger import Refusal
from engine.preferences.shapes import Beside, Column, Shape
from engine.preferences.written import unwritten

Row = Mapping[str, Any]
_SEEN = 100  # characters of a detail before advice, which the ledger must not clip
_UNREAD = ("broken_json", "not_a_message", "unexpected_type", "unknown_role", "prompts_differ")


@dataclass(frozen=True)
class Format:
    """A named way of writing comparisons down.

    Attributes:
        description: one line for people.
        columns: where its values are, by the names under which `layout` takes them; `system` is always one.
        layout: makes the comparison of a row's values.
        marks: what at least one value of a row must look like for the columns to have this meaning; empty: nothing.
        ranking: what is made of more than two answers.
        given: the values whose columns the field map names.
        written: the names of columns whose texts are JSON of what they hold.
        ignore: the names of columns that are not looked at.
    """

    name: str
    description: str
    columns: Mapping[str, Column]
    layout: Callable[[Mapping[str, Any]], Comparison]
    marks: frozenset[Shape] = frozenset()
    ranking: Ranking = "all"
    given: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()

    def read(self, row: Row) -> list[Pair] | Refusal:
        """The pairs that a row holds, at least one, or why it holds none."""
        row = unwritten(row, self.written)
        try:
            check_text_alone(row, self.ignore)
            values = {key: column.value(row) for key, column in self.columns.items()}
            self._check_scores(row, values)
            return pairs(with_system(self.layout(values), values["system"]), self.ranking)
        except Refused as refused:
            return self._told(refused)

    def without(self, names: Iterable[str]) -> Self:
        """The same format, which does not look at columns of these names."""
        ignore = self.ignore | frozenset(names)
        columns = {
            key: replace(column, names=tuple(name for name in column.names if name not in ignore))
            for key, column in self.columns.items()
        }
        return replace(self, columns=columns, ignore=ignore)

    @property
    def needed(self) -> list[Column]:
        """The columns that the data must have; one that the field map names is always among them."""
        return [column for key, column in self.columns.items() if not column.optional or key in self.given]

    def lacks(self, names: Iterable[str]) -> list[str]:
        """The needed columns that are none of these."""
        there = set(names)
        return [column.names[0] for column in self.needed if not there & set(column.names)]

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns, each of a look that they may have, and one of the marks."""
        row = unwritten(row, self.written)
        seen = {key: column.seen(row) for key, column in self.columns.items()}
        alike = all(shape in self.columns[key].shapes for key, shape in seen.items())
        return alike and (not self.marks or not self.marks.isdisjoint(seen.values()))

    def _check_scores(self, row: Row, values: Mapping[str, Any]) -> None:
        if values.get("score_chosen") is None:
            return
        high, low = number(values.get("score_chosen")), number(values.get("score_rejected"))
        if high is None or low is None or high > low:
            return
        names = [self.columns[side].name(row) for side in ("score_chosen", "score_rejected")]
        if high == low:
            raise Beside("tied_scores", f"both answers have the score {high:g}", *names)
        raise Beside("scores_contradict", f"the chosen answer has the score {high:g}, the rejected one {low:g}", *names)

    def _told(self, refused: Refused) -> Refusal:
        """A refusal with the setting that would have the row read, if there is one."""
        refusal = refused.refusal
        if isinstance(refused, Beside):
            advice = ignoring([*self.ignore, *refused.columns])
            return replace(refusal, detail=f"{refusal.detail[:_SEEN]}; to read it: {advice}")
        if self.written and refusal.reason in _UNREAD and (texts := reads_texts(self.name)):
            return replace(refusal, detail=f"read as JSON, else {setting('format', texts)}: {refusal.detail}")
        return refusal
