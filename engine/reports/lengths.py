"""How long prompts and responses are, in characters and in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.reports.drawing import CHOSEN, PLAIN, REJECTED
from engine.reports.markdown import escape, number, share, table
from engine.reports.page import Picture

if TYPE_CHECKING:
    import numpy as np

    from engine.reports.sampled import Sampled

    Numbers = np.ndarray[Any, Any]

SIDES = {"chosen": CHOSEN, "rejected": REJECTED}
_FAR = 1.6  # a cut that is further out than so many times nearly all lengths leaves their picture empty


@dataclass(frozen=True)
class Lengths:
    """Of the same pairs in the same order, (N,) whole numbers each.

    Attributes:
        turns: messages of the prompt.
    """

    prompts: "Numbers"
    chosen: "Numbers"
    rejected: "Numbers"
    turns: "Numbers | None" = None

    def table(self, unit: str) -> str:
        """Up to what length half of them go, and nearly all."""
        import numpy as np

        rows = []
        for name, values in (("prompts", self.prompts), ("chosen", self.chosen), ("rejected", self.rejected)):
            half, most = np.quantile(values, (0.5, 0.95), method="nearest")
            rows.append([name, number(int(half)), number(int(most))])
        return table([escape(unit), "half have up to", "95% up to"], rows)

    def words(self) -> str:
        """Which side is longer how often, since a model may learn just that; and how many prompts are dialogues."""
        longer, shorter = ((self.chosen > self.rejected).mean(), (self.chosen < self.rejected).mean())
        told = f"The chosen response is the longer one in {share(float(longer))} of the pairs,"
        told += f" and the shorter one in {share(float(shorter))}."
        dialogues = 0.0 if self.turns is None else float((self.turns > 1).mean())
        return told + (f" {share(dialogues)} of the prompts are dialogues of several messages." if dialogues else "")

    def responses(self, title: str, unit: str) -> Picture:
        """Chosen against rejected."""
        from engine.reports.histograms import Values, histogram

        sides = (("chosen", self.chosen), ("rejected", self.rejected))
        return histogram(title, [Values(side, values, SIDES[side]) for side, values in sides], x=unit)


def with_cut(title: str, name: str, lengths: "Numbers", cut: object, *, y: str) -> Picture:
    """Lengths in tokens with the most that there may be."""
    from engine.reports.histograms import Values, histogram
    from engine.reports.pictures import Mark

    marks = [Mark(cut, f"cut at {number(cut)}")] if isinstance(cut, int) and _is_near(cut, lengths) else []
    return histogram(title, [Values(name, lengths, PLAIN)], x="tokens", y=y, marks=marks)


def _is_near(cut: int, lengths: "Numbers") -> bool:
    """Whether a cut is shown: where something reaches it, or nearly does."""
    from engine.reports.series import span

    return len(lengths) > 0 and bool(cut <= lengths.max() or cut <= _FAR * span(lengths)[1])


def in_characters(found: "Sampled") -> Lengths:
    """Of a table of PAIRS; a prompt's is that of all its messages. Raises DataError."""
    import numpy as np
    import pyarrow.compute as pc

    read: dict[str, list[Any]] = {"prompts": [], "chosen": [], "rejected": [], "turns": []}
    for rows in found.tables(["prompt", *SIDES]):
        messages = rows["prompt"].combine_chunks()
        turns = _integers(pc.list_value_length(messages))
        said = _integers(pc.utf8_length(pc.struct_field(pc.list_flatten(messages), "content")))
        before = np.concatenate([[0], np.cumsum(said)])
        ends = np.cumsum(turns)
        read["prompts"].append(before[ends] - before[ends - turns])
        read["turns"].append(turns)
        for side in SIDES:
            read[side].append(_integers(pc.utf8_length(rows[side])))
    return Lengths(**{name: _joined(parts) for name, parts in read.items()})


def in_tokens(found: "Sampled") -> Lengths:
    """Of a table of TOKENS, as they were cut; a response's are the scored ones. Raises DataError."""
    import pyarrow.compute as pc

    read: dict[str, list[Any]] = {"prompts": [], "chosen": [], "rejected": []}
    for rows in found.tables(["prompt_length", *(f"{side}_input_ids" for side in SIDES)]):
        prompts = _integers(rows["prompt_length"])
        read["prompts"].append(prompts)
        for side in SIDES:
            read[side].append(_integers(pc.list_value_length(rows[f"{side}_input_ids"])) - prompts)
    return Lengths(**{name: _joined(parts) for name, parts in read.items()})


def _integers(column: Any) -> "Numbers":
    import numpy as np
    import pyarrow.compute as pc

    numbers: Numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _joined(parts: "Sequence[Numbers]") -> "Numbers":
    import numpy as np

    return np.concatenate([np.zeros(0, np.int64), *parts])
