"""The numbers over held-out pairs once more, for some of them: by source, length, what was chosen, what was cut."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.evaluation.intervals import Floats, bootstrap_means

SOURCES, OTHERS = 12, "others"
SHOWN = ("eval_rewards/accuracies", "eval_rewards/margins", "eval_longer_wins", "eval_log_ratio_per_token/chosen")


def slices(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Floats],
    clusters: Sequence[str],
    seed: int,
    shares: Collection[str],
) -> list[dict[str, Any]]:
    """What the means of some columns are within each slice, with 95 % intervals.

    Args:
        rows: N EVALUATED rows.
        columns: (N,) numbers of the pairs by name; of them those in `SHOWN` are told.
        clusters, seed, shares: see `bootstrap_means`.

    Returns:
        For each slice `slice` (what it is by), `value`, `pairs`, `metrics` and `intervals`. What is the same for all
        pairs makes no slice.
    """
    return [
        {"slice": kind, "value": value, "pairs": len(members)}
        | _numbers({name: columns[name][members] for name in SHOWN}, [clusters[row] for row in members], seed, shares)
        for kind, values in _kinds(rows)
        for value, members in _members(values)
    ]


def by_source(sources: Sequence[str]) -> list[str]:
    """The source of each pair if it is one of the `SOURCES` most frequent, else "others", the most frequent first."""
    frequent = sorted(Counter(sources).items(), key=lambda each: (-each[1], each[0]))[:SOURCES]
    named = {name for name, _ in frequent}
    return [source if source in named else OTHERS for source in sources]


def by_length(tokens: Sequence[int]) -> list[str]:
    """Which third each pair belongs to by its length; pairs of one length are never parted.

    So a third may hold more or less than its name says, and where many are of one length there are fewer than three.
    """
    ordered = sorted(tokens)
    first, second = (ordered[(len(ordered) * third - 1) // 3] for third in (1, 2))
    shortest, middle, longest = (
        f"shortest third, up to {first:,} tokens",
        f"middle third, up to {second:,} tokens",
        f"longest third, over {second:,} tokens",
    )
    return [shortest if each <= first else middle if each <= second else longest for each in tokens]


def _kinds(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """What pairs are told apart by, and the value of each pair."""
    yield "source", by_source([row["source"] for row in rows])
    yield "length", by_length([row["chosen_scored_tokens"] + row["rejected_scored_tokens"] for row in rows])
    yield "chosen_refuses", ["refuses" if row["chosen_refuses"] else "answers" for row in rows]
    yield "truncated", ["cut" if row["truncated"] else "whole" for row in rows]


def _members(values: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Each value and the rows that have it, in a settled order; nothing where all have the same."""
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    if len(found) > 1:
        yield from sorted(found.items(), key=_place)


def _place(slice_: tuple[str, list[int]]) -> tuple[bool, int, str]:
    value, members = slice_
    return value == OTHERS, -len(members), value


def _numbers(
    columns: Mapping[str, Floats], clusters: Sequence[str], seed: int, shares: Collection[str]
) -> dict[str, Any]:
    ends = bootstrap_means(columns, clusters, seed, shares)
    return {
        "metrics": {name: float(np.mean(column)) for name, column in columns.items()},
        "intervals": {name: list(each) for name, each in ends.items()},
    }
