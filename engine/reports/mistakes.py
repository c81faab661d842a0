"""The held-out pairs that a model gets most wrong, with their texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import PipelineError
from engine.reports.behind import behind
from engine.reports.markdown import number, plain, signed
from engine.reports.page import Answers, Exchange, Said
from engine.store import Artifact

if TYPE_CHECKING:
    import pyarrow as pa

_WORST, _SOURCE_CHARACTERS = 5, 60


def worst_pairs(artifact: Artifact, pairs: "pa.Table") -> Answers | None:
    """The pairs of the smallest margins with their texts, which the artifact behind this one has; None without it."""
    import numpy as np

    margins = pairs["margin"].to_numpy()
    wanted = pairs.take(np.argsort(margins, kind="stable")[:_WORST]).to_pylist()
    texts = _texts(artifact, [row["pair_id"] for row in wanted])
    told = tuple(_exchange(row, texts[row["pair_id"]]) for row in wanted if row["pair_id"] in texts)
    if not told:
        return None
    wrong = int((margins < 0).sum())
    words = f"{number(wrong)} of {number(len(margins))} are put the wrong way round" if wrong else "none is put wrong"
    return Answers(f"Held-out pairs with the smallest margins ({words})", told)


def _texts(artifact: Artifact, pair_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Prompt and answers of some held-out pairs by `pair_id`; of none where they are gone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from engine.preferences.schema import TOKENS, read_batches

    found: dict[str, Mapping[str, Any]] = {}
    try:
        drawn = behind(artifact, "subsample")
        if drawn is None:
            return {}
        columns = ["pair_id", "prompt", "chosen", "rejected"]
        for batch in read_batches(drawn.file("eval.parquet"), TOKENS, columns):
            these = batch.filter(pc.is_in(batch["pair_id"], pa.array(pair_ids)))
            found |= {row["pair_id"]: row for row in these.to_pylist()}
            if len(found) == len(set(pair_ids)):
                break
    except (PipelineError, OSError, ValueError):
        pass
    return found


def _exchange(row: Mapping[str, Any], texts: Mapping[str, Any]) -> Exchange:
    marks = {side: [f"reward {signed(row[f'{side}_reward'])}"] for side in ("chosen", "rejected")}
    if row["chosen_refuses"]:
        marks["chosen"].append("a refusal")
    said = (Said(side, texts[side] or "", tuple(told)) for side, told in marks.items())
    source = plain(row["source"], _SOURCE_CHARACTERS)
    return Exchange(f"Margin {signed(row['margin'])}, from {source}", texts["prompt"] or "", tuple(said))
