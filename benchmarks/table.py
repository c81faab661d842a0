"""What was measured, as rows: medians with their spread, the ratio, the target, and the table of them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# (name, peer, shape) → target of the ratio; the first sign says on which side of the number it lies.
TARGETS = {
    ("train", "trl", "small"): "≥ 7",
    ("train", "trl", "768"): "≥ 4",
    ("train", "seed", "small"): "≥ 6",
    ("train", "seed", "768"): "≥ 5",
    ("score", "trl", "small"): "≥ 4",
    ("score", "trl", "768"): "≥ 4",
    ("limit", "peak", "small"): "≥ 0.7",
    ("limit", "peak", "768"): "≥ 0.9",
    ("bf16", "fp32", "768"): "≥ 1.8",
    ("memory", "trl", "small"): "≤ 0.5",
    ("memory", "trl", "768"): "≤ 0.5",
    ("tokenize", "encode", "small"): "≤ 1.2",
    ("train", "trl", "ctllm"): "≥ 2.5",
    ("limit", "peak", "ctllm"): "≥ 0.5",
    ("memory", "cap", "ctllm"): "≤ 1",
    ("memory", "cap", "7b"): "≤ 1",
}
LARGEST_LOGPS_ERROR = 0.01  # bf16's mean relative error of per-token logps, beside its speed


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: "train", "score", "limit", "memory", "bf16", "tokenize", …
        peer: against whom: "trl", "seed", "peak", "fp32", …
        ours, theirs: medians, in `unit`.
        ratio: ours ÷ theirs, of the medians.
        ours_spread, theirs_spread: smallest and largest run.
        met: whether the ratio meets the target; None where there is none.
        more: what belongs to this figure alone, such as the vocabulary.
    """

    name: str
    shape: str
    profile: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    unit: str
    ours_spread: tuple[float, float]
    theirs_spread: tuple[float, float]
    runs: int
    target: str = ""
    met: bool | None = None
    machine: str = ""
    date: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One flat object."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "more"}
        return plain | self.more


def row(
    name: str,
    shape: str,
    profile: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    **more: Any,
) -> Row:
    """The row of these runs, rounded to four digits; `machine` and `date` may be among the rest."""
    middle, other = statistics.median(ours), statistics.median(theirs)
    target = TARGETS.get((name, peer, shape), "")
    known = {key: more.pop(key) for key in ("machine", "date") if key in more}
    return Row(
        name,
        shape,
        profile,
        peer,
        digits(middle),
        digits(other),
        digits(middle / other),
        unit,
        spread(ours),
        spread(theirs),
        min(len(ours), len(theirs)),
        target,
        meets(middle / other, target) and more.get("logps_error", 0.0) <= LARGEST_LOGPS_ERROR if target else None,
        more=more,
        **known,
    )


def from_json(given: dict[str, Any]) -> Row:
    """The row that another script measured; what is no field of a row is kept beside it."""
    names = {each.name for each in fields(Row)}
    own = {name: value for name, value in given.items() if name in names}
    return Row(**own, more={name: value for name, value in given.items() if name not in names})


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest, rounded."""
    return digits(min(values)), digits(max(values))


def digits(value: float, count: int = 4) -> float:
    """The number to so many significant digits."""
    return float(f"{value:.{count}g}")


def meets(ratio: float, target: str) -> bool:
    """Whether a ratio lies where a target such as "≥ 7" wants it."""
    side, _, bound = target.partition(" ")
    return ratio >= float(bound) if side == "≥" else ratio <= float(bound)


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = [
        "| figure | shape | profile | against | ours | theirs | unit | ratio | target | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        verdict = {True: "met", False: "**missed**", None: ""}[each.met]
        beside = ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in each.more.items())
        lines.append(
            f"| {each.name} | {each.shape} | {each.profile} | {each.peer} | {_cell(each.ours, each.ours_spread)} "
            f"| {_cell(each.theirs, each.theirs_spread)} | {each.unit} | {each.ratio:.3g} | {each.target} "
            f"| {'; '.join(filter(None, (verdict, beside)))} |"
        )
    return "\n".join(lines)


def _cell(middle: float, around: tuple[float, float]) -> str:
    low, high = (f"{value:.3g}" if value < 1_000 else f"{value:,.0f}" for value in around)
    shown = f"{middle:.3g}" if middle < 1_000 else f"{middle:,.0f}"
    return shown if low == high else f"{shown} ({low}–{high})"


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def write(path: Path, objects: Sequence[dict[str, Any]]) -> None:
    """Writes the list of objects, one to a line, so that a diff shows what moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in objects)
    path.write_text(f"[\n{lines}\n]\n", "utf-8")
