"""Comparisons read as the first stage reads them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dpo_pipeline._configured import plain
from engine.errors import ConfigError
from engine.keys import problem_of
from engine.preferences.formats import Pair
from engine.preferences.ledger import Refusal, shown
from engine.preferences.origin import pairs_of
from engine.preferences.reading import Record
from engine.sources import Sources
from tasks import download as stage

if TYPE_CHECKING:
    import pyarrow as pa

Files = str | PathLike[str] | Sequence[str | PathLike[str]]


def read_pairs(files: Files = "", **download: Any) -> "tuple[pa.Table, pa.Table]":
    """Comparisons as the pipeline understands them, and the rows that it refuses, with reasons.

    >>> pairs, refused = dpo.read_pairs("mine.jsonl")
    >>> pairs.column("chosen")[0].as_py()
    'Mix flour and eggs.'

    Args:
        files: paths or globs of local files, in any known format; empty where `download` names a data set.
        download: other keys of a profile's `[download]` table, as `format="alpaca-ranking"`, `encoding="gb18030"`,
            `dataset="owner/name"`, `max_rows=100`, `fields={"prompt": "question"}`. How many rows may be refused is
            not asked here.

    Returns:
        Pairs, one a row: `pair_id`, `prompt` (messages of `role` and `content`), `chosen`, `rejected`, `source`, `row`
        (from 1). Refused rows: `source`, `row`, `pair_id` (empty), `reason`, `detail`.

    Raises:
        ConfigError: no such file or data set, or a key or value that the table does not take.
        DataError: something cannot be read, or is of no known format or of two.
        TransientError: the Hub did not answer.
    """
    import pyarrow as pa

    from engine.preferences.schema import LEDGER, PAIRS

    config = _config({"files": plain(files), **{name: plain(value) for name, value in download.items()}})
    pairs: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with TemporaryDirectory() as memory:
        known = config.formats()
        for origin in stage.origins(config, Sources(Path(memory), network=True)):
            form = origin.detect(known).format
            for record in origin.records():
                _sort(record, pairs_of(record, form), pairs, refused)
    return pa.Table.from_pylist(pairs, schema=PAIRS), pa.Table.from_pylist(refused, schema=LEDGER)


def _sort(
    record: Record, found: list[Pair] | Refusal, pairs: list[dict[str, Any]], refused: list[dict[str, Any]]
) -> None:
    """Puts a row where it belongs; texts of refused ones are clipped and shown as the stage's ledger has them."""
    if isinstance(found, Refusal):
        told = {"reason": found.reason, "detail": shown(found.detail)}
        refused.append({"source": shown(record.source), "row": record.row, "pair_id": "", **told})
    else:
        pairs += [vars(pair) | {"source": record.source, "row": record.row} for pair in found]


def _config(table: dict[str, Any]) -> stage.Config:
    try:
        return stage.Config.model_validate(table)
    except ValidationError as error:
        _, problem, expected = problem_of(error, "download", table)
        raise ConfigError(problem, expected=expected, where="read_pairs") from None
