"""Where comparisons come from: a file, a data set or the embedded world, read row by row as often as it is asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from engine.preferences.formats import Detection, Format, Pair, recognise
from engine.preferences.ledger import Refusal
from engine.preferences.reading import Record

SAMPLE_ROWS = 20  # enough to see every column of JSON rows that leave some out


@dataclass(frozen=True)
class Origin:
    """One thing to read.

    Attributes:
        source: begins anew each time it is called.
        most: rows read at most, refused ones included; 0 for all.
    """

    name: str
    source: Callable[[], Iterator[Record]]
    most: int = 0

    def records(self) -> Iterator[Record]:
        """Its rows from the first one on. Raises what its `source` raises."""
        return islice(self.source(), self.most or None)

    def sample(self) -> list[dict[str, Any]]:
        """The first rows that can be read, to tell a format by."""
        readable = (record.content for record in self.records() if isinstance(record.content, dict))
        return list(islice(readable, SAMPLE_ROWS))

    def detect(self, known: Sequence[Format]) -> Detection:
        """The format of its rows. Raises DataError where none of the known ones fits, or two do."""
        return recognise(self.name, self.sample(), known)


def pairs_of(record: Record, form: Format) -> list[Pair] | Refusal:
    """The comparisons that a row holds, one or several; or why it holds none."""
    return form.read(record.content) if isinstance(record.content, dict) else record.content
