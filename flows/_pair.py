"""What `dpo data show` shows: one pair as the tokens that a model sees, and which of them are scored."""

import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.text import Text

from engine.config import Settings
from engine.errors import ConfigError, DataError, MissingInputError
from engine.preferences.formats import Pair
from engine.preferences.ledger import Refusal
from engine.preferences.origin import pairs_of
from engine.preferences.pair_tokens import tokens_row
from engine.preferences.reading import Record
from engine.preferences.schema import TOKENS, read_batches
from engine.preferences.tokenizing import CUTS
from engine.reports.markdown import number, plain
from engine.reports.token_view import seen
from flows._sources import AtHand, at_hand, from_artifact, named, tokenized
from flows._tables import print_json

_PARTS = ("prompt", "chosen", "rejected")


def show_pair(settings: Settings, at: int, source: str = "", *, as_json: bool) -> None:
    """Prints the pair's prompt and both responses, each token with its id and whether it is scored.

    Args:
        at: which pair, counted from 1.
        source: where it is from; empty: the tokenize artifact of this configuration.

    Raises:
        MissingInputError: nothing was tokenized under this configuration, or no tokenizer is at hand.
        ConfigError: there is no such pair or source.
        DataError: the source cannot be read, or the pair cannot be written in tokens.
    """
    hand, row = _of_source(settings, source, at) if source else _of_artifact(settings, at)
    told = _told(hand, row)
    if as_json:
        print_json(told)
    else:
        _print(at, told)


def _of_artifact(settings: Settings, at: int) -> tuple[AtHand, Mapping[str, Any]]:
    made = tokenized(settings)
    if made is None:
        raise MissingInputError(
            "nothing was tokenized under this configuration",
            fix=f"{settings.command('run', '--until', 'tokenize')}, or name a file with --file",
        )
    before = 0
    for batch in read_batches(made.file("pairs.parquet"), TOKENS):
        if at <= before + batch.num_rows:
            return from_artifact(settings, made), batch.slice(at - before - 1, 1).to_pylist()[0]
        before += batch.num_rows
    raise _no_such(at, before, str(made.path))


def _of_source(settings: Settings, source: str, at: int) -> tuple[AtHand, Mapping[str, Any]]:
    record, pair = _pair(settings, source, at)
    hand = at_hand(settings)
    return hand, {**tokens_row(pair, hand.template, hand.limits), "source": record.source, "row": record.row}


def _pair(settings: Settings, source: str, at: int) -> tuple[Record, Pair]:
    """The pair of that number, rows that hold none passed over."""
    place, before = named(settings, source), 0
    known = place.config.formats()
    for origin in place.origins(settings):
        form = origin.detect(known).format
        for record in origin.records():
            found = pairs_of(record, form)
            if isinstance(found, Refusal):
                continue
            for pair in islice(found, at - before - 1, None):
                return record, pair
            before += len(found)
    raise _no_such(at, before, source)


def _no_such(at: int, pairs: int, where: str) -> ConfigError | DataError:
    if not pairs:
        return DataError("there is no pair", where=where, fix="dpo data inspect says why rows are refused")
    return ConfigError(f"there is no pair {at:,}", expected=f"a number from 1 to {pairs:,}", where=where)


def _told(hand: AtHand, row: Mapping[str, Any]) -> dict[str, Any]:
    """The pair as JSON-like values: tokens with id, text and whether they are scored, by the part they belong to."""
    prompt = row["prompt_length"]
    ids = {"prompt": row["chosen_input_ids"][:prompt]} | {s: row[f"{s}_input_ids"][prompt:] for s in _PARTS[1:]}
    scored = {"prompt": row["chosen_label_mask"][:prompt]} | {s: row[f"{s}_label_mask"][prompt:] for s in _PARTS[1:]}
    return {
        **{name: row[name] for name in ("pair_id", "source", "row")},
        "tokenizer": hand.name,
        "template": hand.template.name,
        "max_length": hand.limits.max_length,
        "max_prompt_length": hand.limits.max_prompt_length,
        **{f"{cut}_tokens": row[f"{cut}_tokens"] for cut in CUTS},
        "texts": {part: row[part] for part in _PARTS},
        "tokens": {
            part: [
                {"id": index, "text": text, "scored": mark}
                for index, text, mark in zip(ids[part], hand.spelled(ids[part]), scored[part], strict=True)
            ]
            for part in _PARTS
        },
    }


def _print(at: int, told: Mapping[str, Any]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    print(f"pair {number(at)}: row {number(told['row'])} of {plain(told['source'])}, {told['pair_id']}")
    limits = f"max_length {told['max_length']}, max_prompt_length {told['max_prompt_length']}"
    print(f"template `{plain(told['template'])}`, {limits}, tokens of {plain(told['tokenizer'])}")
    print("id·text stands for a token; [in brackets] it is scored, ␣ is a space and ⏎ the end of a line")
    for part in _PARTS:
        tokens, cut = told["tokens"][part], told[f"{part}_cut_tokens"]
        print(f"\n{part}: {_summary(tokens, cut, 'beginning' if part == 'prompt' else 'end')}")
        console.print(_flow(tokens), soft_wrap=not console.is_terminal)


def _summary(tokens: Sequence[Mapping[str, Any]], cut: int, where: str) -> str:
    scored = sum(token["scored"] for token in tokens)
    lost = f"; {number(cut)} were cut from its {where}" if cut else ""
    return f"{number(len(tokens))} tokens, {number(scored) if scored else 'none'} scored{lost}"


def _flow(tokens: Sequence[Mapping[str, Any]]) -> Text:
    flow = Text()
    for token in tokens:
        text = plain(seen(token["text"])) or "‹nothing›"
        left, right, style = ("[", "]", "bold green") if token["scored"] else ("", "", "dim")
        flow.append(f"{left}{token['id']}·", "dim").append(text, style).append(right, "dim").append(" ")
    return flow
