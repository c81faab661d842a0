"""Comparisons from local files, the Hub or the embedded world, normalised to pairs; the rows refused, with reasons."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine.config import Located, Seed, Strict
from engine.preferences import reading
from engine.preferences.formats import Detection, Format, Pair, candidates
from engine.preferences.later import Later
from engine.preferences.ledger import Ledger, Refusal, check_budget, shown
from engine.preferences.origin import Origin, pairs_of
from engine.preferences.reading import Record
from engine.preferences.schema import PAIRS, ROW_GROUP_ROWS, writer
from engine.secrets import redacted
from engine.sources import Sources
from engine.stage import Context, Stage

_NAMED = 20  # sources of each format in the manifest


class FieldMap(Strict):
    """Columns that have other names than the known formats give them; empty: the format's own."""

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    system: str = Field(default="", description="a system prompt of the row's own, put before its prompt")


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
    format: str = Field(default="", description="how a row says a comparison; empty: told by its columns")
    fields: FieldMap = FieldMap()
    ignore: list[str] = Field(default=[], description="names of columns that are not looked at")
    ranking: Literal["all", "best_worst"] = Field(
        default="all", description="pairs of a row that ranks several answers: each two of them, or the best and worst"
    )
    streaming: bool = Field(default=False, description="take a data set's rows as they arrive and store none of it")
    max_rows: int = Field(default=0, ge=0, description="rows read at most of each file or data set; 0: all")
    refused_share: float = Field(default=0.05, ge=0, le=1, description="refuse more than this and the stage fails")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            "\n".encode(name).decode(name)
        except (LookupError, ValueError):
            raise ValueError("the name of a text encoding, for example utf-8, gb18030, utf-16, cp1252") from None
        return name

    @field_validator("ignore")
    @classmethod
    def _in_order(cls, names: list[str]) -> list[str]:
        return sorted(set(names))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("dataset", "files", "embedded_pairs") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of dataset, files and embedded_pairs; given: {' and '.join(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _streams_whole_splits(self) -> Self:
        if self.streaming and not self.dataset:
            raise ValueError("streaming is for a dataset; files are read row by row in any case")
        if self.streaming and "[" in self.split:
            raise ValueError(f"a whole split where rows are streamed, with max_rows for its beginning; {self.split}")
        return self

    @model_validator(mode="after")
    def _has_formats(self) -> Self:
        """Raises ConfigError where there is no format of that name, or none that has the columns that are named."""
        self.formats()
        return self

    def formats(self) -> list[Format]:
        """The formats to look for."""
        fields = {name: column for name, column in self.fields.model_dump().items() if column}
        return candidates(fields, self.format, self.ranking, self.ignore)


def run(ctx: Context[Config]) -> None:
    """Writes `pairs.parquet` (PAIRS) and `ledger.parquet` (LEDGER). Duplicates stay: subsample takes them out.

    A row that ranks several answers gives several pairs, of one source and row.

    Raises:
        ConfigError: no such files, data set, subset or split.
        DataError: a source cannot be read, is of no known format or of two, or more rows were refused than
            `refused_share` allows.
        TransientError: the Hub did not answer, or the stream was cut.
    """
    config, path = ctx.config, ctx.work / "ledger.parquet"
    known, sources = config.formats(), list(origins(config, ctx.sources))
    found = [origin.detect(known) for origin in sources]
    later = [Later(each.format, known) for each in found]
    with Ledger(path) as ledger, _Pairs(ctx.work / "pairs.parquet") as pairs:
        rows = _write(ctx, ledger, pairs, list(zip(sources, found, later, strict=True)))
    other = _told_later(ctx, sources, later)
    ctx.record(
        rows_read=rows,
        pairs=pairs.total,
        refused=ledger.total,
        refused_by_reason=dict(sorted(ledger.counts.items())),
        formats=sorted({each.format.name for each in found}),
        recognised=redacted(_recognised(config, sources, found)),  # names of files and columns are the user's
        **({"other_rows": redacted(other)} if other else {}),
    )
    check_budget(ledger.total, rows, config.refused_share, ledger.counts, ctx.stage, path)


class _Pairs:
    """Writes a PAIRS table row group by row group; a context manager.

    Attributes:
        total: pairs so far.
    """

    def __init__(self, path: Path) -> None:
        self.total = 0
        self._table = writer(path, PAIRS)
        self._held: list[dict[str, Any]] = []

    def add(self, pair: Pair, record: Record) -> None:
        self.total += 1
        self._held.append(vars(pair) | {"source": record.source, "row": record.row})
        if len(self._held) == ROW_GROUP_ROWS:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._held:
                self._flush()
        finally:
            self._table.close()

    def _flush(self) -> None:
        self._table.write_table(pa.Table.from_pylist(self._held, schema=PAIRS))
        self._held = []


def _write(
    ctx: Context[Config], ledger: Ledger, pairs: _Pairs, sources: Sequence[tuple[Origin, Detection, Later]]
) -> int:
    """Every row's pairs into the table, or its refusal into the ledger; returns the number of rows."""
    rows = 0
    for origin, detected, later in sources:
        for record in origin.records():
            rows += 1
            later.add(record)
            found = pairs_of(record, detected.format)
            if isinstance(found, Refusal):
                ledger.add(found.reason, source=record.source, row=record.row, detail=found.detail)
            else:
                for pair in found:
                    pairs.add(pair, record)
            if rows % ROW_GROUP_ROWS == 0:
                ctx.progress(rows, 0, pairs=pairs.total, refused=ledger.total)
    ctx.progress(rows, rows, pairs=pairs.total, refused=ledger.total)
    return rows


def _told_later(ctx: Context[Config], sources: Sequence[Origin], later: Sequence[Later]) -> list[dict[str, Any]]:
    """Rows of another kind than the format was told by: into the log, and the first of them as JSON-like values."""
    told = [
        {"source": Path(origin.name).name if ctx.config.files else origin.name, **each}
        for origin, watch in zip(sources, later, strict=True)
        for each in watch.told()
    ]
    for each in told[:_NAMED]:
        words = "%d rows of %s, the first row %d, have the columns %s: %s"
        ctx.log.warning(words, each["count"], shown(each["source"]), each["row"], each["columns"], each["problem"])
    return told[:_NAMED]


def _recognised(config: Config, sources: Sequence[Origin], found: Sequence[Detection]) -> list[dict[str, Any]]:
    """Each format with what it was told by, and the sources that it was told of: how many, and the first by name."""
    told: dict[tuple[str, str], list[str]] = {}
    for origin, each in zip(sources, found, strict=True):
        told.setdefault((each.format.name, each.why), []).append(
            Path(origin.name).name if config.files else origin.name
        )
    return [
        {"format": name, "why": why, "sources": len(names), "named": names[:_NAMED]}
        for (name, why), names in told.items()
    ]


def origins(config: Config, sources: Sources) -> Iterator[Origin]:
    """What the config names, in order. Raises ConfigError where a pattern matches no file."""
    if config.files:
        for path in sources.files(config.files):
            yield Origin(str(path), partial(reading.read, path, config.encoding), config.max_rows)
    elif config.dataset:
        yield Origin(config.dataset, lambda: _hub(config, sources), config.max_rows)
    else:
        yield Origin("smallworld", lambda: _embedded(config), config.max_rows)


def _hub(config: Config, sources: Sources) -> Iterator[Record]:
    from engine.preferences.hub import read_hub

    commit = sources.commit(config.dataset, config.revision, "dataset")
    return read_hub(config.dataset, config.subset, config.split, commit, config.streaming)


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


STAGE = Stage(name="download", config=Config, version=2, run=run, sources=_identities, keeps="data")
