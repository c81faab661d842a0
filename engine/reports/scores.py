"""What the reference thinks of the pairs before anything is learnt from them, and how that was scored."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import DataError, StoreError
from engine.reports.drawing import CHOSEN, REJECTED
from engine.reports.facts import counted, facts, named
from engine.reports.histograms import Values, histogram
from engine.reports.markdown import code, is_number, number, share, table
from engine.reports.page import Part, Picture
from engine.store import Artifact

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.reports.sampled import Sampled

_HALVES = ("train.parquet", "eval.parquet")
_SIDES = ("chosen", "rejected")
_UNLIKELY = 5  # pairs that are named
_ID_CHARACTERS = 20


@dataclass(frozen=True)
class _Scores:
    """Of P pairs of both halves: `sums` in nats and numbers of scored `tokens`, (P, 2) each, chosen before rejected.

    Attributes:
        of: how many pairs were scored, all of which these are a sample.
    """

    pair_ids: list[str]
    sums: "npt.NDArray[np.float64]"
    tokens: "npt.NDArray[np.float64]"
    of: int

    @property
    def per_token(self) -> "npt.NDArray[np.float64]":
        """(P, 2) nats a scored token; NaN where nothing was scored."""
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.tokens > 0, self.sums / self.tokens, np.nan)


def reference_parts(artifact: Artifact) -> Iterator[Part]:
    """The parts of reference's page, in markdown and pictures; of an older artifact those that can be told.

    Raises:
        StoreError: its manifest cannot be read.
    """
    metrics = artifact.metrics
    scores = None if artifact.pruned else _scores(artifact)
    if scores is None:
        yield "*The scores themselves are gone, or cannot be read; what was recorded of them is left.*"
    elif scores.pair_ids:
        yield _before_training(scores)
        yield from _pictures(scores)
        yield _unlikely(scores)
    yield _how(metrics)


def _scores(artifact: Artifact) -> _Scores | None:
    import numpy as np

    from engine.reports.sampled import MOST_ROWS, sampled

    try:
        halves = [sampled(artifact.file(name)) for name in _HALVES]
        of = sum(half.of for half in halves)
        halves = [sampled(half.path, max(1, MOST_ROWS * half.of // max(of, 1))) for half in halves]
        rows = [row for half in halves for row in _rows(half)]
    except (DataError, StoreError, OSError, ValueError, TypeError, NotImplementedError):  # other columns than ours
        return None
    empty = np.empty((0, 2))
    ids = [pair_id for some, _, _ in rows for pair_id in some]
    return _Scores(
        ids,
        np.concatenate([empty, *(sums for _, sums, _ in rows)]),
        np.concatenate([empty, *(n for *_, n in rows)]),
        of,
    )


def _rows(half: "Sampled") -> Iterator[tuple[list[str], Any, Any]]:
    """The pair ids, sums and numbers of scored tokens of one row group after the other, so that memory stays flat."""
    import numpy as np
    import pyarrow.compute as pc

    sums, tokens = ([f"ref_{side}_{what}" for side in _SIDES] for what in ("logps", "token_logps"))
    for rows in half.tables(["pair_id", *sums, *tokens]):
        lengths = [pc.list_value_length(rows[name]) for name in tokens]
        yield (
            [str(pair_id) for pair_id in rows["pair_id"].to_pylist()],
            np.stack([rows[name].to_numpy() for name in sums], axis=1).astype(np.float64),
            np.stack([each.to_numpy() for each in lengths], axis=1).astype(np.float64),
        )


def _before_training(scores: _Scores) -> str:
    """How often the reference already prefers what is to be chosen."""
    told = [
        f"In {_first_wins(scores.sums)} of the pairs the chosen answer is the likelier one from the start, and in "
        f"{_first_wins(scores.per_token)} by its mean token."
    ]
    if len(scores.pair_ids) < scores.of:
        told.append(f"Of {number(scores.of)} pairs, {number(len(scores.pair_ids))} were looked at, evenly spaced.")
    return f"**Before training**\n\n{' '.join(told)}"


def _first_wins(values: "npt.NDArray[np.float64]") -> str:
    """The share of rows whose first value is the larger one, ties counting one half; – where none can be compared."""
    import numpy as np

    compared = values[np.isfinite(values).all(axis=1)]
    return share(float((0.5 + 0.5 * np.sign(compared[:, 0] - compared[:, 1])).mean())) if len(compared) else "–"


def _pictures(scores: _Scores) -> Iterator[Picture]:
    told = {
        "By token: how far apart they are before training": (scores.per_token, "nats a token"),
        "As a whole: longer answers are less likely": (scores.sums, "nats"),
    }
    for title, (values, x) in told.items():
        sides = zip(_SIDES, values.T, (CHOSEN, REJECTED), strict=True)
        yield histogram(title, [Values(side, of_side, colour) for side, of_side, colour in sides], x=x)


def _unlikely(scores: _Scores) -> str:
    """The pairs that surprise the reference most, counting the tokens of both answers."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        both = scores.sums.sum(axis=1) / scores.tokens.sum(axis=1)
    order = [int(at) for at in np.argsort(both, kind="stable")[:_UNLIKELY] if math.isfinite(both[at])]
    rows = [
        [code(scores.pair_ids[at][:_ID_CHARACTERS]), *map(number, map(float, scores.per_token[at]))] for at in order
    ]
    if not rows:
        return ""
    return f"**The pairs it finds least likely** (nats a token)\n\n{table(['pair', *_SIDES], rows)}"


def _how(metrics: Mapping[str, Any]) -> str:
    where, quantization = metrics.get("device"), metrics.get("quantization")
    return facts(
        "How it was scored",
        {
            "scored for this": [counted(metrics.get("pairs_scored"), "pairs")],
            "taken over": [counted(metrics.get("pairs_reused"), "pairs that were scored before")],
            "pace": [counted(metrics.get("tokens_per_second"), "tokens a second"), named(where, "on {}")],
            "passes": [
                named(metrics.get("layout")),
                named(metrics.get("head"), "{} head"),
                counted(metrics.get("score_batch_tokens"), "tokens at most"),
            ],
            "weights": [
                named(metrics.get("dtype")),
                named(metrics.get("attention"), "{} attention"),
                named("" if quantization == "none" else quantization, "{} quantization"),
            ],
            "scored again": [_recheck(metrics)],
        },
    )


def _recheck(metrics: Mapping[str, Any]) -> str:
    """How far scores that were taken over are from what the policy says now; nothing where none was."""
    pairs, gap, allowed = (metrics.get(f"reused_recheck_{what}") for what in ("pairs", "max_difference", "tolerance"))
    if not pairs or not all(map(is_number, (pairs, gap, allowed))):
        return ""
    return f"{counted(pairs, 'of those taken over')}: off by {counted(gap, 'nats')} at most, {counted(allowed)} allowed"
