"""Comparisons from local files, the Hub or the embedded world, normalised to pairs; the rows refused, with reasons."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine.config import Located, Seed, Strict
from engine.preferences import reading
from engine.preferences.formats import Format, Pair, candidates, recognise
from engine.preferences.ledger import Ledger, Refusal, check_budget
from engine.preferences.reading import Record
from engine.preferences.schema import PAIRS, ROW_GROUP_ROWS, writer
from engine.sources import Sources
from engine.stage import Context, Stage

_SAMPLE_ROWS = 20  # enough to see every column of JSON rows that leave some out


class FieldMap(Strict):
    """Columns that have other names than the known formats give them; empty: the format's own."""

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""


class Config(Strict):
    """What to read: exactly one of `dataset`, `files` and `embedded_pairs`."""

    dataset: Annotated[str, Located()] = Field(default="", description="data set on the Hub: owner/name")
    revision: Annotated[str, Located()] = Field(default="main", description="its branch, tag or commit")
    subset: str = Field(default="", description="its configuration, where it has several")
    split: str = "train"
    files: Annotated[str | list[str], Located()] = Field(default="", description="paths or globs of local files")
    embedded_pairs: int = Field(default=0, ge=0, description="size of the embedded corpus, which needs no data")
    embedded_seed: Seed = 0
    embedded_requests: Literal["all", "harmful", "harmless"] = Field(
        default="all", description="what it compares answers to; harmful alone teaches to refuse everything"
    )
    encoding: str = Field(default="utf-8", description="of JSON and CSV files")
    fields: FieldMap = FieldMap()
    refused_share: float = Field(default=0.05, ge=0, le=1, description="refuse more than this and the stage fails")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            "\n".encode(name).decode(name)
        except (LookupError, ValueError):
            raise ValueError("the name of a text encoding, for example utf-8, gb18030, utf-16, cp1252") from None
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("dataset", "files", "embedded_pairs") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of dataset, files and embedded_pairs; given: {' and '.join(given) or 'none'}"
            )
        return self


@dataclass(frozen=True)
class _Source:
    """One thing to read, from the start each time it is asked for its `records`."""

    name: str
    records: Callable[[], Iterator[Record]]


def run(ctx: Context[Config]) -> None:
    """Writes `pairs.parquet` (PAIRS) and `ledger.parquet` (LEDGER). Duplicates stay: subsample takes them out.

    Raises:
        ConfigError: no such files, data set, subset or split.
        DataError: a source cannot be read, lacks a column, or more rows were refused than `refused_share` allows.
        TransientError: the Hub did not answer.
    """
    config, path = ctx.config, ctx.work / "ledger.parquet"
    known = candidates(config.fields.prompt, config.fields.chosen, config.fields.rejected)
    sources = list(_sources(config, ctx.sources))
    formats = [recognise(source.name, _sample(source), known) for source in sources]
    with Ledger(path) as ledger:
        pairs = _write(ctx, ledger, sources, formats)
    ctx.record(
        rows_read=pairs + ledger.total,
        pairs=pairs,
        refused=ledger.total,
        refused_by_reason=dict(sorted(ledger.counts.items())),
        formats=sorted({each.name for each in formats}),
    )
    check_budget(ledger.total, pairs + ledger.total, config.refused_share, ledger.counts, ctx.stage, path)


def _write(ctx: Context[Config], ledger: Ledger, sources: list[_Source], formats: list[Format]) -> int:
    """Writes the pairs in row groups, the refusals into the ledger; returns the number of pairs."""
    pairs, held = 0, list[dict[str, Any]]()
    with writer(ctx.work / "pairs.parquet", PAIRS) as table:
        for source, form in zip(sources, formats, strict=True):
            for record in source.records():
                pair = form.read(record.content) if isinstance(record.content, dict) else record.content
                if isinstance(pair, Refusal):
                    ledger.add(pair.reason, source=record.source, row=record.row, detail=pair.detail)
                    continue
                held.append(_row(pair, record))
                if len(held) == ROW_GROUP_ROWS:
                    table.write_table(pa.Table.from_pylist(held, schema=PAIRS))
                    pairs, held = pairs + len(held), []
                    ctx.progress(pairs + ledger.total, 0, pairs=pairs, refused=ledger.total)
        if held:
            table.write_table(pa.Table.from_pylist(held, schema=PAIRS))
    pairs += len(held)
    ctx.progress(pairs + ledger.total, pairs + ledger.total, pairs=pairs, refused=ledger.total)
    return pairs


def _row(pair: Pair, record: Record) -> dict[str, Any]:
    return vars(pair) | {"source": record.source, "row": record.row}


def _sample(source: _Source) -> list[dict[str, Any]]:
    readable = (record.content for record in source.records() if isinstance(record.content, dict))
    return list(islice(readable, _SAMPLE_ROWS))


def _sources(config: Config, sources: Sources) -> Iterator[_Source]:
    if config.files:
        for path in sources.files(config.files):
            yield _Source(str(path), lambda path=path: reading.read(path, config.encoding))  # type: ignore[misc]
    elif config.dataset:
        yield _Source(config.dataset, lambda: _hub(config, sources))
    else:
        yield _Source("smallworld", lambda: _embedded(config))


def _hub(config: Config, sources: Sources) -> Iterator[Record]:
    from engine.preferences.hub import read_hub

    commit = sources.commit(config.dataset, config.revision, "dataset")
    return read_hub(config.dataset, config.subset, config.split, commit)


def _embedded(config: Config) -> Iterator[Record]:
    from engine.preferences import smallworld

    pairs = smallworld.pairs(config.embedded_pairs, config.embedded_seed, config.embedded_requests)
    return (Record("smallworld", row, dict(pair)) for row, pair in enumerate(pairs, 1))


def _identities(config: Config, sources: Sources) -> Mapping[str, Any]:
    if config.files:
        return {"files": sources.file_contents(config.files)}
    if config.dataset:
        return {"dataset": f"{config.dataset}@{sources.commit(config.dataset, config.revision, 'dataset')}"}
    from engine.preferences import smallworld

    return {"generator": smallworld.VERSION}


STAGE = Stage(name="download", config=Config, version=1, run=run, sources=_identities, keeps="data")
