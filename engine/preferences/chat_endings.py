"""How an answer ends: which of the ids that a chat template writes after it close it."""

import re
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.preferences.text_ids import ids_going_on

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile(r"<[|｜][^<>\s]*[|｜]>")  # what nobody writes who means text


def end_of_turn(tokenizer: "PreTrainedTokenizerBase", tail: str, *, sealed: bool) -> tuple[int, ...]:
    """What closes a response: of the ids after an answer, those up to the first special tokens, EOS or others.

    None stands there twice, and none after EOS. Where there is none, another token that was added to the vocabulary
    closes it, if the text after the answer begins with it. A template that writes neither is closed by EOS.

    Args:
        tail: what a chat template writes after an answer.
        sealed: whether a model was trained with the tokenizer; a mark that it has as text is then no reason to refuse.

    Raises:
        ConfigError: there is neither, and no EOS; or the template writes such a mark.
    """
    (after,) = ids_going_on(tokenizer, [tail], literal=False)
    eos = tokenizer.eos_token_id
    closing = {eos} | {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    first = next((at for at, index in enumerate(after) if index in closing), None)
    if first is not None:
        return (*after[:first], *_once(after[first:], closing, eos))
    if (ends := _added_first(tokenizer, after)) is not None:
        return tuple(after[: ends + 1])
    if not sealed:
        _check_mark(tokenizer, tail.strip())
    if eos is None:
        raise ConfigError(
            "nothing ends an answer: the chat template closes it with no special token, and the tokenizer has no EOS",
            found="eos_token is not set",
            where=str(tokenizer.name_or_path),
            fix="set eos_token in its tokenizer_config.json",
        )
    return (int(eos),)


def _added_first(tokenizer: Any, ids: list[int]) -> int | None:
    """The place of a token that was added to the vocabulary, where nothing but white space stands before it."""
    added = tokenizer.added_tokens_decoder
    first = next((at for at, index in enumerate(ids) if str(tokenizer.decode([index])).strip()), None)
    return first if first is not None and ids[first] in added else None


def _check_mark(tokenizer: Any, tail: str) -> None:
    mark = _MARK.match(tail)
    (ids,) = ids_going_on(tokenizer, [mark[0] if mark else ""], literal=False)
    if len(ids) > 1:
        raise ConfigError(
            "the chat template ends an answer with what is no token of this tokenizer",
            expected=f"{tail} as one token",
            found=f"{len(ids)} tokens of text",
            where=str(tokenizer.name_or_path),
            fix="write {{ eos_token }} there in a copy of the template, or name a model whose tokenizer has the token",
        )


def _once(ids: list[int], closing: set[int | None], eos: int | None) -> list[int]:
    """The special tokens at the beginning, to EOS or to where one comes again."""
    kept: list[int] = []
    for index in ids:
        if index not in closing or index in kept:
            break
        kept.append(index)
        if index == eos:
            break
    return kept
