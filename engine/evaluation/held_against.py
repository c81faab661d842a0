"""One evaluate artifact held against another one: over the pairs that both have, and no others."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.artifact import Artifact
from engine.errors import DataError
from engine.evaluation.comparison import (
    Row,
    common,
    compared_rows,
    differences,
    got_better,
    got_worse,
    not_comparable,
)
from engine.evaluation.intervals import Difference
from engine.evaluation.pairs import RIGHT, measures
from engine.preferences.schema import EVALUATED, read_batches, read_table

_METRICS, _PAIRS = "metrics.json", "pairs.parquet"


@dataclass(frozen=True)
class Compared:
    """One evaluation held against another, over the pairs that both have.

    Attributes:
        pairs: how many these are.
        drawn: on how many of them the numbers rest.
        only_here, only_there: pairs that one of them alone has.
        differences: here minus there, by metric.
        means: (there, here) over the same pairs, by the same metrics.
        not_comparable: why a metric is not among them, in words.
        worse, better: COMPARED rows, the largest change first; `service` in their names is the other evaluation. None
            where what is right does not mean the same in both.
    """

    pairs: int
    drawn: int
    only_here: int
    only_there: int
    differences: Mapping[str, Difference]
    means: Mapping[str, tuple[float, float]]
    not_comparable: Mapping[str, str]
    worse: Sequence[Row]
    better: Sequence[Row]


def compare(here: Artifact, there: Artifact, most: int | None = None) -> Compared:
    """Holds an evaluate artifact against another one.

    Args:
        most: of more common pairs than this it takes so many. Ids are hashes of what the pairs say, so those with the
            lowest are drawn without favour, and are the same ones each time.

    Raises:
        DataError: one of them is not what this version writes, or they have no pair in common.
        StoreError: a file of theirs is gone.
    """
    mine, theirs = _pair_ids(here), _pair_ids(there)
    both = mine & theirs
    if not both:
        raise DataError(
            "the two evaluations have no held-out pair in common",
            found=f"{len(mine):,} pairs here and {len(theirs):,} other ones there",
            where=str(there.path),
        )
    drawn = both if most is None or len(both) <= most else set(sorted(both)[:most])
    identity, of_theirs = identity_of(here), identity_of(there)
    apart = not_comparable(identity, of_theirs)
    tonight, other = common(_rows(here, drawn), _rows(there, drawn))
    seed = identity.get("seed", 0)
    changes = differences(tonight, other, seed if isinstance(seed, int) else 0, apart)
    rows = [] if RIGHT in apart else compared_rows(tonight, other)
    return Compared(
        pairs=len(both),
        drawn=len(drawn),
        only_here=len(mine) - len(both),
        only_there=len(theirs) - len(both),
        differences=changes,
        means=_means(tonight, other, changes),
        not_comparable=apart,
        worse=got_worse(rows),
        better=got_better(rows),
    )


def identity_of(artifact: Artifact) -> Mapping[str, Any]:
    """What the numbers of an evaluate artifact depend on; nothing where it does not say.

    Raises:
        DataError: its `metrics.json` cannot be read.
        StoreError: it is gone.
    """
    path = artifact.file(_METRICS)
    try:
        identity = json.loads(path.read_text("utf-8")).get("identity")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError("an evaluation cannot be read", found=str(error), where=str(path)) from None
    return identity if isinstance(identity, dict) else {}


def _pair_ids(artifact: Artifact) -> set[str]:
    return set(read_table(artifact.file(_PAIRS), EVALUATED, ["pair_id"])["pair_id"].to_pylist())


def _rows(artifact: Artifact, wanted: Collection[str]) -> list[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array(wanted, pa.string())
    batches = read_batches(artifact.file(_PAIRS), EVALUATED)
    return [row for batch in batches for row in batch.filter(pc.is_in(batch["pair_id"], value_set=ids)).to_pylist()]


def _means(tonight: Sequence[Row], other: Sequence[Row], names: Collection[str]) -> dict[str, tuple[float, float]]:
    mine, theirs = measures(tonight), measures(other)
    return {name: (float(theirs[name].mean()), float(mine[name].mean())) for name in names}
