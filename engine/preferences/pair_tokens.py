"""Single pairs in tokens, outside of a table: for those who look at data before anything is made of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from engine.errors import DataError
from engine.preferences.formats import Pair
from engine.preferences.schema import PAIRS
from engine.preferences.templates import Template
from engine.preferences.tokenizing import CUTS, Encoded, Limits, encode, fit


def token_lengths(pairs: Sequence[Pair], template: Template) -> list[tuple[int, int, int] | None]:
    """Ids of prompt, chosen and rejected of each pair, whole and framed; None where the template refuses it.

    The pairs' order is kept.
    """
    encoded = _encoded(pairs, template)
    refused = {place["row"] for place, _ in encoded.refused}
    end = len(template.end_ids)
    rows = zip(encoded.prompts, encoded.chosen, encoded.rejected, strict=True)
    lengths = ((len(prompt), len(chosen) + end, len(rejected) + end) for prompt, chosen, rejected in rows)
    return [None if at in refused else next(lengths) for at in range(len(pairs))]


def tokens_row(pair: Pair, template: Template, limits: Limits) -> Mapping[str, Any]:
    """The pair as the row of TOKENS that the tokenize stage would make of it, but for where it comes from.

    Raises:
        DataError: the template refuses it, or the stage would drop it.
    """
    encoded = _encoded([pair], template)
    for _, why in encoded.refused:
        raise DataError("the template cannot write this pair", found=why, where=f"template `{template.name}`")
    fitted = fit(template, encoded.prompts, encoded.chosen, encoded.rejected, limits)
    (reason,) = fitted.drop_reasons()
    if reason:
        raise DataError(
            "nothing of this pair could be learned from under the limits",
            found=reason,
            where=f"max_length {limits.max_length}, max_prompt_length {limits.max_prompt_length}",
            fix="raise tokenize.max_length",
        )
    prompt = fitted.prompts[0]
    sides = {"chosen": fitted.chosen[0], "rejected": fitted.rejected[0]}
    row: dict[str, Any] = encoded.pairs.to_pylist()[0] | {"prompt_length": len(prompt)}
    row |= {f"{side}_input_ids": prompt + ids for side, ids in sides.items()}
    row |= {f"{side}_label_mask": [False] * len(prompt) + [True] * len(ids) for side, ids in sides.items()}
    return row | {f"{cut}_tokens": fitted.cuts[cut][0] for cut in CUTS}


def _encoded(pairs: Sequence[Pair], template: Template) -> Encoded:
    rows = [vars(pair) | {"source": "", "row": at} for at, pair in enumerate(pairs)]
    return encode(pa.RecordBatch.from_pylist(rows, schema=PAIRS), template)
