"""How the data moved from one night to the next: shares by source and by length, and which pairs are new or gone.

The tokenize stage tallies what is needed into its manifest, which outlives the tables. A tally is no part of the
artifact's digest: it says nothing that the tables do not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from engine.artifact import Artifact
from engine.errors import PipelineError
from engine.preferences.schema import TOKENS, read_table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

NAMED_SOURCES = 20
OTHERS = "(others)"
# Of one night's shares, this much lies elsewhere than the night before: at a tenth, one pair in ten would have to come
# from another source, or be of another length, for the two to be alike. A night's few new pairs among all the others
# move less; a source that fell away or was read wrong moves more.
THRESHOLD = 0.1
# Two draws from the same data differ too. Below three times what chance alone is expected to give, nothing is said.
_CHANCES = 3.0
_LONGEST = tuple(2**power for power in range(2, 13))  # tokens; fixed, so that nights under other limits compare
LENGTHS = (
    f"1–{_LONGEST[0]}",
    *(f"{low + 1}–{high}" for low, high in pairwise(_LONGEST)),
    f"over {_LONGEST[-1]}",
)


class Tally:
    """Counts over tables of TOKENS: pairs by source, and responses, of both sides, by their scored tokens."""

    def __init__(self) -> None:
        self._sources: Counter[str] = Counter()
        self._lengths = [0] * len(LENGTHS)

    def add_sources(self, table: "pa.Table") -> None:
        """Counts a table's pairs in."""
        for entry in table["source"].value_counts().to_pylist():
            self._sources[entry["values"] or ""] += entry["counts"]

    def add_lengths(self, lengths: "np.ndarray[Any, Any]") -> None:
        """Counts responses in, by their lengths in tokens."""
        import numpy as np

        counts = np.bincount(np.searchsorted(_LONGEST, lengths), minlength=len(LENGTHS))
        self._lengths = [old + int(new) for old, new in zip(self._lengths, counts, strict=True)]

    def records(self) -> dict[str, Any]:
        """What goes into the manifest: the most frequent sources, all the others in one, and every bin of lengths."""
        ordered = sorted(self._sources.items(), key=lambda entry: (-entry[1], entry[0]))
        return {
            "sources": dict(ordered[:NAMED_SOURCES]),
            "other_sources": sum(count for _, count in ordered[NAMED_SOURCES:]),
            "response_lengths": dict(zip(LENGTHS, self._lengths, strict=True)),
        }


@dataclass(frozen=True)
class Drift:
    """How far two nights' shares along one dimension lie apart.

    Attributes:
        shares: (name, share then, share now), what moved most first; shares of each night sum to 1.
        distance: total variation, half the sum of the absolute differences: 0 for the same shares, 1 for disjoint ones.
        by_chance: what two independent draws of these sizes from the same data would differ by, about.
        added: new sources and their pairs, where nothing else moved and no source has fewer pairs than it had: data
            that grow night by night. Empty otherwise.
    """

    dimension: str
    shares: list[tuple[str, float, float]]
    distance: float
    by_chance: float
    added: Mapping[str, int] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """Whether the shares lie further apart than the threshold, and than chance explains."""
        return self.distance >= THRESHOLD and self.distance > _CHANCES * self.by_chance

    @property
    def moved(self) -> bool:
        """Whether it is worth a reader's attention: the shares lie apart, and not for new sources alone."""
        return self.apart and not self.added

    @property
    def word(self) -> str:
        """The verdict in a few words; as plain text, since it may name a source."""
        if self.moved:
            return "moved"
        if self.apart:
            name = next(iter(self.added))
            alone = len(self.added) == 1 and name != OTHERS
            return f"new source{f' {name}' if alone else 's'}, {sum(self.added.values()):,} pairs"
        return "as it was" if self.distance < THRESHOLD / 10 else "much as it was"


def drifts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    """Drift by source and by length, from what tokenize recorded; nothing where either night recorded no tally."""
    then, tonight = _tally(before), _tally(now)
    if then is None or tonight is None:
        return []
    sources = _together((then[0], then[1]), (tonight[0], tonight[1]))
    lengths = (then[2], tonight[2])
    found = [_drift("source", *sources), _drift("response length", *lengths)]
    if found[0] is not None:
        found[0] = replace(found[0], added=_added(*sources))
    return [each for each in found if each is not None]


def changed_pairs(before: Artifact, now: Artifact) -> tuple[int, int] | None:
    """How many pairs are new and how many are gone, by `pair_id`; None when either table cannot be read any more."""
    import pyarrow.compute as pc

    try:
        if before.digest == now.digest:
            return 0, 0
        then, tonight = (_pair_ids(artifact) for artifact in (before, now))
    except PipelineError:
        return None
    new = len(tonight) - pc.sum(pc.is_in(tonight, value_set=then)).as_py() if len(tonight) else 0
    return new, len(then) - (len(tonight) - new)


def _pair_ids(artifact: Artifact) -> "pa.Array":
    import pyarrow.compute as pc

    return pc.unique(read_table(artifact.file("pairs.parquet"), TOKENS, ["pair_id"])["pair_id"])


def _tally(metrics: Mapping[str, Any]) -> tuple[dict[str, int], int, dict[str, int]] | None:
    """Sources, pairs of the other sources, lengths; None when a manifest holds no such thing."""
    sources, others, lengths = (metrics.get(name) for name in ("sources", "other_sources", "response_lengths"))
    if not isinstance(sources, Mapping) or not isinstance(lengths, Mapping) or not isinstance(others, int):
        return None
    if not all(isinstance(count, int) and count >= 0 for count in [*sources.values(), *lengths.values(), others]):
        return None
    return dict(sources), others, dict(lengths)


def _together(
    then: tuple[dict[str, int], int], tonight: tuple[dict[str, int], int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Both nights' counts by source under the same names: one that a night may hide among its others goes there."""
    hidden = {name for name in then[0] if tonight[1] and name not in tonight[0]}
    hidden |= {name for name in tonight[0] if then[1] and name not in then[0]}
    return _folded(*then, hidden), _folded(*tonight, hidden)


def _folded(sources: dict[str, int], others: int, hidden: set[str]) -> dict[str, int]:
    kept = {name: count for name, count in sources.items() if name not in hidden}
    rest = others + sum(count for name, count in sources.items() if name in hidden)
    return kept | {OTHERS: kept.get(OTHERS, 0) + rest} if rest else kept


def _added(then: dict[str, int], tonight: dict[str, int]) -> dict[str, int]:
    """The new sources with their pairs, where the old ones only grew, and alike. Both tallies use the same names."""
    kept = {name: tonight.get(name, 0) for name in then}
    old = _drift("source", then, kept)
    if old is None or old.apart or any(kept[name] < count for name, count in then.items()):
        return {}
    return {name: count for name, count in tonight.items() if count and name not in then}


def _drift(dimension: str, then: dict[str, int], tonight: dict[str, int]) -> Drift | None:
    first, second = sum(then.values()), sum(tonight.values())
    if not first or not second:
        return None
    names = [name for name in dict.fromkeys([*tonight, *then]) if then.get(name) or tonight.get(name)]
    shares = [(name, then.get(name, 0) / first, tonight.get(name, 0) / second) for name in names]
    shares.sort(key=lambda entry: -abs(entry[2] - entry[1]))  # stable: alike ones stay in the order of the tally
    pooled = [(then.get(name, 0) + tonight.get(name, 0)) / (first + second) for name in names]
    spread = math.sqrt(2 / math.pi * (1 / first + 1 / second))  # the mean absolute value of a normal difference
    chance = 0.5 * spread * sum(math.sqrt(share * (1 - share)) for share in pooled)
    distance = round(0.5 * sum(abs(new - old) for _, old, new in shares), 12)  # 0.9 less 0.8 is a little under 0.1
    return Drift(dimension, shares, distance, chance)
