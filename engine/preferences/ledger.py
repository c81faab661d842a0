"""The ledger: every row that a stage refused, cut or set aside, with its reason, and the budget for refusals."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from engine.errors import DataError
from engine.preferences.schema import LEDGER, ROW_GROUP_ROWS, writer
from engine.secrets import visible

_DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Refusal:
    """Why a row is not taken: a reason in snake_case to count by, and what was seen, for people."""

    reason: str
    detail: str = ""


class Ledger:
    """Writes a LEDGER table row group by row group, and counts by reason. A context manager; whole once it is left.

    It is also whole when it is left by an exception, so that an error may point to it.

    Attributes:
        counts: rows so far, by reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, int] = Counter()
        self._writer = writer(path, LEDGER)
        self._rows: list[dict[str, Any]] = []

    @property
    def total(self) -> int:
        """Rows so far, whatever their reason."""
        return sum(self.counts.values())

    def add(self, reason: str, *, source: str, row: int, pair_id: str = "", detail: str = "") -> None:
        """Enters one row; `pair_id` is empty for a row that never became a pair, `detail` is clipped."""
        self.counts[reason] += 1
        entry = {"source": shown(source), "row": row, "pair_id": pair_id, "reason": reason, "detail": shown(detail)}
        self._rows.append(entry)
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._rows:
                self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=LEDGER))
        self._rows = []


def shown(text: str) -> str:
    """`text` as it can be written and printed anywhere: of bearable length, in one line, and what acts on a terminal
    (control characters, marks of direction) or is no character (lone surrogates) as escapes.
    """
    clipped = text if len(text) <= _DETAIL_CHARACTERS else text[: _DETAIL_CHARACTERS - 1] + "…"
    return visible(clipped)


def check_budget(refused: int, total: int, share: float, counts: Mapping[str, int], stage: str, ledger: Path) -> None:
    """Passes when at most `share` of `total` rows were refused and at least one was kept.

    Raises:
        DataError: a summary by reason, most frequent first, that points to the ledger.
    """
    kept = total - refused
    if kept > 0 and refused <= share * total:
        return
    problem = (
        f"{stage} refused {refused:,} of {total:,} rows ({refused / total:.1%}), more than its budget of {share:.1%}"
        if kept > 0
        else f"{stage} has no row left of {total:,}"
    )
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    raise DataError(
        problem,
        expected=f"at most {int(share * total):,} refused rows, and at least one that is kept",
        found=", ".join(f"{count:,} × {reason}" for reason, count in reasons) or "no rows at all",
        where=str(ledger),
        fix=f"read the reasons in the ledger and repair the data, or allow more with {stage}.refused_share",
    )
