"""tokenize: pairs of text become pairs of token ids; the tokenizer, trained or loaded, is part of the artifact."""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from engine.config import Strict
from engine.errors import ModelError
from engine.fingerprint import digest
from engine.pace import Course
from engine.policies import place_of
from engine.preferences.chat_templates import adopt, checked_name, control_tokens, is_jinja, source
from engine.preferences.drift import Tally
from engine.preferences.ledger import Ledger, check_budget
from engine.preferences.schema import PAIRS, TOKENS, read_batches, read_rows, writer
from engine.secrets import redacted
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.preferences.templates import Template

_PROBE = ["To be kept as it is: naïve, 指令:好的。\n输出:", " 1+1=2 🙂\t", "\n\n"]


class Config(Strict):
    """How pairs are written and how long they may be."""

    model: ModelSource = ModelSource()
    template: str = Field(
        default="plain",
        description="seed, plain, chat (the tokenizer's own), a named chat template, or the path of a .jinja file",
    )
    max_length: int = Field(default=256, ge=8, description="ids of prompt and response together")
    max_prompt_length: int = Field(default=0, ge=0, description="ids of the prompt; 0: half of max_length")
    vocab_size: Annotated[int, Field(ge=300, le=200_000)] | Literal["auto"] = Field(
        default="auto", description="of the BPE that is trained where no model is named; auto: by the size of the data"
    )
    refused_share: float = Field(default=0.05, ge=0, le=1, description="dropped pairs that are borne")

    @field_validator("template")
    @classmethod
    def _is_a_template(cls, name: str) -> str:
        return checked_name(name)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.max_prompt_length > self.max_length:
            raise ValueError(f"max_prompt_length ({self.max_prompt_length}) at most max_length ({self.max_length})")
        if self.template == "chat" and not self.model.name:
            raise ValueError(
                'a model for template = "chat": a tokenizer trained here has no chat template; or name one, as "chatml"'
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Every field; of a chat template in Jinja, not what it is called: its text is among the stage's sources."""
        return super().identity() | ({"template": "jinja"} if is_jinja(self.template) else {})

    @property
    def prompt_limit(self) -> int:
        """The most ids a prompt keeps."""
        return self.max_prompt_length or self.max_length // 2


def run(ctx: Context[Config]) -> None:
    """Writes pairs.parquet (TOKENS), ledger.parquet and tokenizer/.

    Raises:
        ConfigError: the template cannot be read, or does not fit the tokenizer or the limits.
        ModelError: the tokenizer cannot be loaded, or is another one after it was saved.
        DataError: more pairs were dropped than `refused_share` allows.
    """
    from engine.preferences.templates import template

    pairs = ctx.inputs["download"].file("pairs.parquet")
    tokenizer = _tokenizer(ctx, pairs)
    name = "chat" if is_jinja(ctx.config.template) else ctx.config.template  # the tokenizer's own by now
    form = template(name, tokenizer)
    form.check_room(ctx.config.prompt_limit)
    with Ledger(ctx.work / "ledger.parquet") as ledger:
        totals = _tokenize(ctx, pairs, form, ledger)
    dropped, share = totals.read - totals.pairs, ctx.config.refused_share
    check_budget(dropped, totals.read, share, _drops(ledger), ctx.stage, ledger.path)
    limits = {"max_length": ctx.config.max_length, "max_prompt_length": ctx.config.prompt_limit}
    ctx.hand_down(template=name, **limits)
    _record(ctx, totals, ledger, vocab_size=len(tokenizer))


class _Totals:
    """Sums over the tables that were written."""

    def __init__(self, read: int) -> None:
        self.read = read
        self.pairs = self.prompt_tokens = self.response_tokens = self.longest = 0
        self.highest_id = -1
        self.tally = Tally()

    @property
    def tokens(self) -> int:
        """Ids of both sides of all pairs."""
        return 2 * self.prompt_tokens + self.response_tokens

    def add(self, table: pa.Table) -> None:
        """Counts one table of TOKENS in."""
        import pyarrow.compute as pc  # takes longer to import than all of a status

        if not table.num_rows:
            return
        self.pairs += table.num_rows
        self.tally.add_sources(table)
        prompts = table["prompt_length"].to_numpy().astype(np.int64)
        self.prompt_tokens += int(prompts.sum())
        for side in ("chosen", "rejected"):
            ids = table[f"{side}_input_ids"]
            lengths = pc.list_value_length(ids).to_numpy().astype(np.int64)
            self.response_tokens += int((lengths - prompts).sum())
            self.tally.add_lengths(lengths - prompts)
            self.longest = max(self.longest, int(lengths.max()))
            self.highest_id = max(self.highest_id, pc.max(pc.list_flatten(ids)).as_py())


def _tokenize(ctx: Context[Config], pairs: Path, form: "Template", ledger: Ledger) -> _Totals:
    from engine.preferences.tokenizing import Limits, tokenize_pairs

    limits = Limits(ctx.config.max_length, ctx.config.prompt_limit)
    totals = _Totals(pq.read_metadata(pairs).num_rows)
    told = Course(ctx.progress, totals.read).part(totals.read)
    with writer(ctx.work / "pairs.parquet", TOKENS) as out, _settled():
        for table in tokenize_pairs(read_batches(pairs, PAIRS), form, limits, ledger):
            before = totals.tokens
            out.write_table(table)
            totals.add(table)
            told(totals.pairs + sum(_drops(ledger).values()), totals.tokens - before)
    largest = max(form.tokenizer.get_vocab().values())
    if totals.highest_id > largest:
        raise ModelError(
            "the tokenizer gives ids beyond its own vocabulary",
            expected=f"ids up to {largest}",
            found=str(totals.highest_id),
            where=ctx.config.model.name,
        )
    return totals


@contextmanager
def _settled() -> Iterator[None]:
    """The garbage collector leaves alone what is there already: a list a row would make it look through all of it again
    and again, a tenth of the time that encoding takes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _drops(ledger: Ledger) -> dict[str, int]:
    from engine.preferences.tokenizing import CUTS

    return {reason: count for reason, count in ledger.counts.items() if reason not in CUTS}


def _record(ctx: Context[Config], totals: _Totals, ledger: Ledger, vocab_size: int) -> None:
    from engine.preferences.tokenizing import CUTS

    ctx.record(
        pairs=totals.pairs,
        dropped=totals.read - totals.pairs,
        **{reason: ledger.counts.get(reason, 0) for reason in CUTS},
        tokens=totals.tokens,
        mean_prompt_tokens=round(totals.prompt_tokens / totals.pairs, 1),
        mean_response_tokens=round(totals.response_tokens / (2 * totals.pairs), 1),
        longest=totals.longest,
        vocab_size=vocab_size,
        **redacted(totals.tally.records()),  # the names of sources are the user's
    )


def _tokenizer(ctx: Context[Config], pairs: Path) -> "PreTrainedTokenizerBase":
    """Puts the tokenizer with its chat template into the artifact, and returns it as the stages below will read it."""
    from engine.models.loading import load_tokenizer

    config, folder = ctx.config, ctx.work / "tokenizer"
    if config.model.name:
        place = place_of(config.model.name, config.model.revision, config.model, ctx.sources)
        original = load_tokenizer(place.name, revision=place.revision, allow_code=place.allow_code)
    else:
        original = _trained(config, pairs)
    adopt(config.template, original)
    _save(original, folder)
    saved = load_tokenizer(str(folder), allow_code=config.model.own_code_allowed)
    if _identity(saved) != _identity(original):
        raise ModelError(
            "the tokenizer is another one after it was saved",
            expected=str(_identity(original)),
            found=str(_identity(saved)),
            where=config.model.name,
            fix="save it anew with the installed transformers and name that folder",
        )
    return saved


def _save(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text("utf-8"))
    # These say how it was loaded, not what it is: with them, the same tokenizer would be another artifact elsewhere.
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    config.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _identity(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    vocabulary = {str(token): int(index) for token, index in tokenizer.get_vocab().items()}
    return {
        "vocabulary": f"{len(vocabulary)} tokens, {digest(vocabulary)[:12]}",
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "ids": tokenizer(_PROBE, add_special_tokens=False)["input_ids"],
    }


def _trained(config: Config, pairs: Path) -> "PreTrainedTokenizerBase":
    from engine.preferences.tokenizing import auto_vocab_size, evenly, train_bpe

    characters = sum(len(text) for text in _texts(config, pairs))
    size = auto_vocab_size(characters) if config.vocab_size == "auto" else config.vocab_size
    return train_bpe(evenly(_texts(config, pairs), characters), size, control_tokens(config.template))


def _texts(config: Config, pairs: Path) -> Iterator[str]:
    """A pair a text: its prompt as the template writes it, or as `plain` does for Jinja, and both responses."""
    from engine.preferences.templates import TRANSCRIPTS, plain_transcript

    transcript = TRANSCRIPTS.get(config.template, plain_transcript)
    for rows in read_rows(pairs, PAIRS, ["prompt", "chosen", "rejected"]):
        yield from (f"{transcript(row['prompt'])}{row['chosen']}\n{row['rejected']}\n" for row in rows)


def _sources(config: Config, sources: Sources) -> Mapping[str, Any]:
    model, named = config.model, is_jinja(config.template)
    jinja = {"template": digest(source(config.template))} if named else {}
    return jinja | ({"tokenizer": sources.tokenizer(model.name, model.revision)} if model.name else {})


STAGE = Stage(name="tokenize", config=Config, version=2, run=run, inputs=("download",), sources=_sources)
