"""One pair as the tokens that a model sees, each spelled so that people can read it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import StoreError
from engine.reports.page import Token, TokenView
from engine.store import Artifact

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TITLE = "A typical pair, token by token"
COLUMNS = [
    "chosen_input_ids",
    "chosen_label_mask",
    "rejected_input_ids",
    "rejected_label_mask",
    "prompt_length",
    "prompt",
    "chosen",
    "rejected",
]
_MOST = 140  # tokens of one row; its end is worth as much as its beginning
_MOST_CHARACTERS = 600  # of a text that is shown whole, and of one token
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})
_PARTS = "₀₁₂₃₄"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Spelling = Callable[[Sequence[int]], list[str]]


def token_view(artifact: Artifact, row: Mapping[str, Any]) -> TokenView:
    """A row of TOKENS in the tokens of the artifact's own tokenizer; in whole texts where that cannot be read.

    Args:
        row: its `COLUMNS`.
    """
    try:
        spell = spelling(artifact.file("tokenizer/tokenizer.json"))
    except (StoreError, OSError, ValueError):
        return _whole_texts(row)
    sides = {side: list(zip(row[f"{side}_input_ids"], row[f"{side}_label_mask"], strict=False)) for side in _SIDES}
    shared = row["prompt_length"]
    if sides["chosen"][:shared] != sides["rejected"][:shared]:
        shared = 0
    parts = {"prompt": sides["chosen"][:shared]} | {side: tokens[shared:] for side, tokens in sides.items()}
    rows = ((name, _tokens(spell, tokens)) for name, tokens in parts.items() if tokens)
    return TokenView(TITLE, tuple(rows))


_SIDES = ("chosen", "rejected")


def spelled(pieces: Sequence[bytes]) -> list[str]:
    """The text of each piece of a text's UTF-8. Of a character that several pieces share each says which part it has,
    字₁ and 字₂; a byte that is part of none shows as \\xff.
    """
    whole = b"".join(pieces)
    owner = [at for at, piece in enumerate(pieces) for _ in piece]
    texts, at = [""] * len(pieces), 0
    while at < len(whole):
        sign, length = _character(whole, at)
        owners = sorted(set(owner[at : at + length]))
        for part, place in enumerate(owners, 1):
            texts[place] += sign if len(owners) == 1 else f"{sign}{_PARTS[part]}"
        at += length
    return texts


def _character(whole: bytes, at: int) -> tuple[str, int]:
    for length in range(1, 5):
        try:
            return whole[at : at + length].decode("utf-8"), length
        except UnicodeDecodeError:
            continue
    return f"\\x{whole[at]:02x}", 1


def spelling(path: Path) -> Spelling:
    """How the tokens of a vocabulary are spelled. Raises OSError or ValueError when it cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing narrower
        raise ValueError(str(error)) from None
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    raw = _bytes_of_signs if _is_byte_level(path) else _bytes_of_text

    def spell(ids: Sequence[int]) -> list[str]:
        names = [_name(tokenizer, index) for index in ids]
        spoken = [b"" if index in special else raw(name) for index, name in zip(ids, names, strict=True)]
        texts = spelled(spoken)
        return [name if index in special else text for index, name, text in zip(ids, names, texts, strict=True)]

    return spell


def _name(tokenizer: "Tokenizer", index: int) -> str:
    found = tokenizer.id_to_token(index)
    return f"‹{index}›" if found is None else str(found)


def _is_byte_level(path: Path) -> bool:
    """Whether the vocabulary writes bytes as the signs of GPT-2."""
    parts = json.loads(path.read_text("utf-8"))
    return '"ByteLevel"' in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])


def _bytes_of_signs(name: str) -> bytes:
    table = signs()
    return bytes(table[sign] for sign in name) if all(sign in table for sign in name) else name.encode()


def _bytes_of_text(name: str) -> bytes:
    """Of SentencePiece and others: ▁ is a space, and <0x0A> a byte that the vocabulary has no character for."""
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode("utf-8", "replace")


@cache
def signs() -> dict[str, int]:
    """The byte behind each sign: printing Latin-1 characters stand for themselves, the others begin at U+0100.

    After Radford et al. 2019, `bytes_to_unicode` of GPT-2's encoder.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def seen(text: str) -> str:
    """The text of a token with its spaces and ends of lines as signs, its middle left out where it is very long."""
    return _cut(text).translate(_VISIBLE)


def _tokens(spell: Spelling, tokens: Sequence[tuple[int, bool]]) -> tuple[Token, ...]:
    texts = spell([index for index, _ in tokens])
    shown = [Token(seen(text), bool(mark)) for text, (_, mark) in zip(texts, tokens, strict=True)]
    if len(shown) <= _MOST:
        return tuple(shown)
    head, tail = shown[: _MOST * 2 // 3], shown[len(shown) - _MOST // 3 :]
    left_out = Token(f"… {len(shown) - len(head) - len(tail):,} tokens …", head[-1].scored)
    return (*head, left_out, *tail)


def _whole_texts(row: Mapping[str, Any]) -> TokenView:
    rows = ((name, (Token(_cut(str(row[name])).translate(_LINES), name != "prompt"),)) for name in ("prompt", *_SIDES))
    return TokenView(f"{TITLE.partition(',')[0]}; its tokenizer cannot be read", tuple(rows))


_LINES = {sign: mark for sign, mark in _VISIBLE.items() if chr(sign) != " "}


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
