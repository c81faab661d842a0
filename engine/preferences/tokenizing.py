"""Pairs of text to pairs of token ids under a length limit, and the byte-level BPE for those who have no tokenizer.

What is cut, and the rule for it:
- The prompt is cut from the left to `max_prompt_length` and keeps its generation header. The cut depends on the prompt
  alone, never on the responses: both sides keep the same ids, and generation can feed the model the same ones.
- Each response gets the room that is left of `max_length`. Its tail is cut, and a cut response has no EOS.
- A pair is dropped when a side has no scored token left, or when nothing is left that tells its sides apart.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from engine.errors import DataError
from engine.preferences.formats import prompt_id
from engine.preferences.ledger import Ledger
from engine.preferences.schema import TOKENS
from engine.preferences.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUTS = ("prompt_cut", "chosen_cut", "rejected_cut")  # ledger notes on pairs that stay; every other reason is a drop
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")  # ids 0, 1 and 2 of a trained vocabulary
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
TRAINING_CHARACTERS = 5_000_000  # merges hardly change beyond; training takes seconds up to here

_CHARACTERS_PER_TOKEN = 256
_AUTO_VOCABULARY = (512, 8_192)
_KEPT = ["pair_id", "chosen", "rejected", "source", "row"]  # of PAIRS in TOKENS, as they are
_PLACE = ["pair_id", "source", "row"]

T = TypeVar("T")
Ids = list[list[int]]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """The most ids of a whole row, and of its prompt."""

    max_length: int
    max_prompt_length: int


@dataclass(frozen=True)
class Encoded:
    """Pairs in ids, whole: nothing is cut yet.

    Attributes:
        pairs: what TOKENS keeps of each pair beside ids; no row of those that the template refuses.
        prompts, chosen, rejected: ids of every row of `pairs`; a response's are without the template's `end_ids`.
        refused: where each row comes from that the template refuses, and what it says.
    """

    pairs: pa.Table
    prompts: Ids
    chosen: Ids
    rejected: Ids
    refused: list[tuple[Row, str]]


@dataclass(frozen=True)
class Fitted:
    """Pairs under the limits. `chosen` and `rejected` are the scored ids; a row is its prompt and one of them.

    Attributes:
        cuts: how many ids the limits took away, for each name of `CUTS` a number a pair.
    """

    prompts: Ids
    chosen: Ids
    rejected: Ids
    cuts: Mapping[str, Sequence[int]]

    def drop_reasons(self) -> list[str]:
        """Why each pair cannot be learned from, in snake_case; empty for a pair that can."""
        return [self._drop_reason(at) for at in range(len(self.prompts))]

    def _drop_reason(self, at: int) -> str:
        chosen, rejected = self.chosen[at], self.rejected[at]
        if not chosen or not rejected:
            return "no_scored_token"
        if chosen == rejected:
            return "equal_after_cut" if self.cuts["chosen_cut"][at] or self.cuts["rejected_cut"][at] else "equal_tokens"
        return ""


def tokenize_pairs(
    batches: Iterable[pa.RecordBatch], template: Template, limits: Limits, ledger: Ledger
) -> Iterator[pa.Table]:
    """A table of TOKENS for each batch of PAIRS, rows in their order; cuts and drops go into the ledger.

    The next batch is encoded in a thread while the caller is busy with the table of the one before.
    """
    for encoded in _ahead(encode(batch, template) for batch in batches):
        fitted = fit(template, encoded.prompts, encoded.chosen, encoded.rejected, limits)
        drops = fitted.drop_reasons()
        _note(encoded, fitted, drops, ledger)
        yield _table(encoded.pairs, fitted).filter(pa.array([not reason for reason in drops], pa.bool_()))


def encode(batch: pa.RecordBatch, template: Template) -> Encoded:
    """The pairs of a batch of PAIRS in ids, in their order."""
    conversations = batch["prompt"].to_pylist()
    texts: dict[int, str] = {}
    refused: dict[int, str] = {}
    for at, messages in enumerate(conversations):
        try:
            texts[at] = template.render_prompt(messages)
        except DataError as error:
            refused[at] = " ".join(filter(None, (error.problem, error.found)))
    taken = batch.select(_KEPT).take(pa.array(list(texts), pa.int64()))
    prompt_ids = pa.array([prompt_id(conversations[at]) for at in texts], pa.string())
    pairs = pa.Table.from_batches([taken]).append_column("prompt_id", prompt_ids)
    return Encoded(
        pairs.append_column("prompt", pa.array(texts.values(), pa.string())),
        template.encode_prompts(list(texts.values())),
        template.response_ids(taken["chosen"].to_pylist()),
        template.response_ids(taken["rejected"].to_pylist()),
        list(zip(_places(batch, list(refused)), refused.values(), strict=True)),
    )


def fit(template: Template, prompts: Ids, chosen: Ids, rejected: Ids, limits: Limits) -> Fitted:
    """Pairs under the limits.

    Args:
        prompts: whole prompt ids.
        chosen, rejected: whole response ids without the template's `end_ids`.
    """
    kept = [template.cut_prompt(ids, limits.max_prompt_length) for ids in prompts]
    prompt_cut = [len(whole) - len(ids) for whole, ids in zip(prompts, kept, strict=True)]
    rooms = [limits.max_length - len(ids) for ids in kept]
    chosen, chosen_cut = _fit_responses(chosen, template.end_ids, rooms)
    rejected, rejected_cut = _fit_responses(rejected, template.end_ids, rooms)
    return Fitted(kept, chosen, rejected, dict(zip(CUTS, (prompt_cut, chosen_cut, rejected_cut), strict=True)))


def _fit_responses(responses: Ids, end_ids: Sequence[int], rooms: Sequence[int]) -> tuple[Ids, list[int]]:
    fitted = [fit_response(ids, end_ids, room) for ids, room in zip(responses, rooms, strict=True)]
    return [ids for ids, _ in fitted], [cut for _, cut in fitted]


def fit_response(ids: list[int], end_ids: Sequence[int], room: int) -> tuple[list[int], int]:
    """A response's ids with what closes it, or as many as there is room for and no close; and how many were cut."""
    whole = len(ids) + len(end_ids)
    if whole <= room:
        return [*ids, *end_ids], 0
    kept = ids[:room]
    return kept, whole - len(kept)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = beside.submit(next, items, None)
            yield item


def _note(encoded: Encoded, fitted: Fitted, drops: Sequence[str], ledger: Ledger) -> None:
    """Enters the rows that the template refuses, and then every pair's drop, or else its cuts."""
    for place, detail in encoded.refused:
        ledger.add("refused_by_template", **place, detail=detail)
    cut = np.any(list(fitted.cuts.values()), axis=0)
    noted = np.flatnonzero(cut | (np.array(drops, dtype=object) != "")).tolist()
    for at, place in zip(noted, _places(encoded.pairs, noted), strict=True):
        prompt, chosen, rejected = (len(side[at]) for side in (fitted.prompts, fitted.chosen, fitted.rejected))
        left = f"left: prompt {prompt}, chosen {chosen}, rejected {rejected} tokens"
        if drops[at]:
            ledger.add(drops[at], **place, detail=left)
            continue
        for reason in CUTS:
            if taken := fitted.cuts[reason][at]:
                ledger.add(reason, **place, detail=f"{taken} tokens cut; {left}")


def _places(pairs: pa.RecordBatch | pa.Table, rows: Sequence[int]) -> list[Row]:
    """What a ledger says of where rows come from."""
    found: list[Row] = pairs.select(_PLACE).take(pa.array(rows, pa.int64())).to_pylist()
    return found


def _table(pairs: pa.Table, fitted: Fitted) -> pa.Table:
    """All rows as a table of TOKENS, those to drop too."""
    lengths = [len(ids) for ids in fitted.prompts]
    columns = {name: pairs[name] for name in pairs.column_names} | {"prompt_length": lengths}
    columns |= {f"{name}_tokens": cuts for name, cuts in fitted.cuts.items()}
    for side, responses in (("chosen", fitted.chosen), ("rejected", fitted.rejected)):
        rows = [prompt + response for prompt, response in zip(fitted.prompts, responses, strict=True)]
        ids = pa.array(rows, TOKENS.field(f"{side}_input_ids").type)
        columns |= {f"{side}_input_ids": ids, f"{side}_label_mask": _masks(ids, lengths)}
    return pa.table({name: columns[name] for name in TOKENS.names}, schema=TOKENS)


def _masks(ids: pa.ListArray, prompt_lengths: Sequence[int]) -> pa.ListArray:
    """False for each row's prompt and True for the rest: by lengths, since pad, EOS and UNK may share an id."""
    unscored = np.asarray(prompt_lengths, dtype=np.int64)
    scored = np.diff(ids.offsets.to_numpy()) - unscored
    runs = np.stack([unscored, scored], axis=1).ravel()
    return pa.ListArray.from_arrays(ids.offsets, pa.array(np.repeat(np.tile([False, True], len(unscored)), runs)))


def auto_vocab_size(characters: int) -> int:
    """The size of a vocabulary for that much text: a power of two, a token for every 256 characters, 512 to 8,192.

    Fewer characters a token would fill it with pieces seen a handful of times; a power of two keeps it where it is
    while the data grows a little.
    """
    smallest, largest = _AUTO_VOCABULARY
    return min(max(1 << (characters // _CHARACTERS_PER_TOKEN).bit_length() >> 1, smallest), largest)


def evenly(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Every k-th of the texts, k such that about `TRAINING_CHARACTERS` of their `characters` in all are seen."""
    every = max(1, -(-characters // TRAINING_CHARACTERS))
    return (text for at, text in enumerate(texts) if at % every == 0)


def train_bpe(texts: Iterator[str], vocab_size: int, more_special: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with `<pad>`, `<s>` and `</s>` as ids 0, 1 and 2, the same for the same texts.

    Every byte has a token, so any text comes back from its ids unchanged, and there is no unknown token. The
    vocabulary is smaller than asked for when the texts do not hold that many pieces.

    Args:
        more_special: what else becomes a special token, with the ids from 3.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *more_special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
