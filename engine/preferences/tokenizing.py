"""Pairs of text to pairs of token ids under a length limit, and the byte-level BPE for those who have no tokenizer.

What is cut, and the rule for it:
- The prompt is cut from the left to `max_prompt_length` and keeps its generation header. The cut depends on the prompt
  alone, never on the responses: both sides keep the same ids, and generation can feed the model the same ones.
- Each response gets the room that is left of `max_length`. Its tail is cut, and a cut response has no EOS.
- A pair is dropped when a side has no scored token left, or when nothing is left that tells its sides apart.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """The most ids of a whole row, and of its prompt."""

    max_length: int
    max_prompt_length: int


@dataclass(frozen=True)
class Tokenized:
    """One pair under the limits. `chosen` and `rejected` are the scored ids; each row is `prompt` and one of them.

    The `*_cut` are numbers of ids that the limits took away.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    prompt_cut: int
    chosen_cut: int
    rejected_cut: int

    @property
    def drop_reason(self) -> str:
        """Why this pair cannot be learned from, in snake_case; empty when it can."""
        if not self.chosen or not self.rejected:
            return "no_scored_token"
        if self.chosen == self.rejected:
            return "equal_after_cut" if self.chosen_cut or self.rejected_cut else "equal_tokens"
        return ""


def fit(template: Template, prompt: list[int], chosen: list[int], rejected: list[int], limits: Limits) -> Tokenized:
    """One pair under the limits.

    Args:
        prompt: whole prompt ids.
        chosen, rejected: whole response ids without the template's `end_ids`.
    """
    kept = template.cut_prompt(prompt, limits.max_prompt_length)
    room = limits.max_length - len(kept)
    chosen, chosen_cut = fit_response(chosen, template.end_ids, room)
    rejected, rejected_cut = fit_response(rejected, template.end_ids, room)
    return Tokenized(kept, chosen, rejected, len(prompt) - len(kept), chosen_cut, rejected_cut)


def fit_response(ids: list[int], end_ids: Sequence[int], room: int) -> tuple[list[int], int]:
    """A response's ids with what closes it, or as many as there is room for and no close; and how many were cut."""
    whole = len(ids) + len(end_ids)
    if whole <= room:
        return [*ids, *end_ids], 0
    kept = ids[:room]
    return kept, whole - len(kept)


def tokenize_rows(rows: Sequence[Row], template: Template, limits: Limits, ledger: Ledger) -> pa.Table:
    """Rows of PAIRS as a table of TOKENS, in their order; cuts and drops go into the ledger."""
    rendered = [(row, text) for row in rows if (text := _rendered(row, template, ledger)) is not None]
    prompts = template.encode_prompts([text for _, text in rendered])
    chosen = template.response_ids([row["chosen"] for row, _ in rendered])
    rejected = template.response_ids([row["rejected"] for row, _ in rendered])
    kept: list[tuple[Row, str, Tokenized]] = []
    for (row, text), *ids in zip(rendered, prompts, chosen, rejected, strict=True):
        pair = fit(template, ids[0], ids[1], ids[2], limits)
        _note(row, pair, ledger)
        if not pair.drop_reason:
            kept.append((row, text, pair))
    return _table(kept)


def _rendered(row: Row, template: Template, ledger: Ledger) -> str | None:
    try:
        return template.render_prompt(row["prompt"])
    except DataError as error:
        place = {"source": row["source"], "row": row["row"], "pair_id": row["pair_id"]}
        ledger.add("refused_by_template", **place, detail=" ".join(filter(None, (error.problem, error.found))))
        return None


def _note(row: Row, pair: Tokenized, ledger: Ledger) -> None:
    """Enters a pair's drop, or else its cuts."""
    place = {"source": row["source"], "row": row["row"], "pair_id": row["pair_id"]}
    sizes = f"prompt {len(pair.prompt)}, chosen {len(pair.chosen)}, rejected {len(pair.rejected)} tokens"
    if pair.drop_reason:
        ledger.add(pair.drop_reason, **place, detail=f"left: {sizes}")
        return
    for reason in CUTS:
        if cut := getattr(pair, reason):
            ledger.add(reason, **place, detail=f"{cut} tokens cut; left: {sizes}")


def _table(kept: Sequence[tuple[Row, str, Tokenized]]) -> pa.Table:
    pairs = [pair for _, _, pair in kept]
    columns: dict[str, Any] = {
        "prompt_id": [prompt_id(row["prompt"]) for row, _, _ in kept],
        "prompt_length": [len(pair.prompt) for pair in pairs],
        **{f"{reason}_tokens": [getattr(pair, reason) for pair in pairs] for reason in CUTS},
        "prompt": [text for _, text, _ in kept],
        **{name: [row[name] for row, _, _ in kept] for name in ("pair_id", "chosen", "rejected", "source", "row")},
    }
    for side in ("chosen", "rejected"):
        ids = pa.array([pair.prompt + getattr(pair, side) for pair in pairs], TOKENS.field(f"{side}_input_ids").type)
        columns[f"{side}_input_ids"] = ids
        columns[f"{side}_label_mask"] = _masks(ids, columns["prompt_length"])
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in TOKENS}, schema=TOKENS)


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


def train_bpe(texts: Iterator[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with `<pad>`, `<s>` and `</s>` as ids 0, 1 and 2, the same for the same texts.

    Every byte has a token, so any text comes back from its ids unchanged, and there is no unknown token. The
    vocabulary is smaller than asked for when the texts do not hold that many pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
