"""Texts to token ids: alone or going on from another text, with special tokens parsed or taken as mere text."""

from collections.abc import Sequence
from typing import Any

Ids = list[list[int]]

_ANCHOR = "\n"  # no vocabulary joins it with the space that it puts before a text


def ids_of(tokenizer: Any, texts: Sequence[str], *, literal: bool) -> Ids:
    """The ids of each text, without BOS or EOS around it.

    Args:
        literal: whether special tokens spelled in the texts are mere text.
    """
    if not texts:
        return []
    encoded = (_backend_ids if _is_plain(tokenizer) else _own_ids)(tokenizer, list(texts), literal)
    if not literal:
        return encoded
    # A vocabulary of whole words gives BOS and EOS to text that spells them, whatever it is asked.
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id}
    return [ids if frame.isdisjoint(ids) else [index for index in ids if index not in frame] for ids in encoded]


def ids_going_on(tokenizer: Any, texts: Sequence[str], *, literal: bool) -> Ids:
    """As `ids_of`, of texts that go on from others: without the space that some tokenizers put before a text.

    So a prompt's ids and these are what the whole has, but for a token that would span the two.
    """
    if not texts or not _puts_a_space_first(tokenizer):
        return ids_of(tokenizer, texts, literal=literal)
    (anchor,) = ids_of(tokenizer, [_ANCHOR], literal=literal)
    after = ids_of(tokenizer, [_ANCHOR + text for text in texts], literal=literal)
    # Where a text's beginning joins with the anchor, the tokenizer knows white space, and adds none.
    return [
        ids[len(anchor) :] if ids[: len(anchor)] == anchor else ids_of(tokenizer, [text], literal=literal)[0]
        for ids, text in zip(after, texts, strict=True)
    ]


def _puts_a_space_first(tokenizer: Any) -> bool:
    joined, anchor, alone = ids_of(tokenizer, [f"{_ANCHOR}a", _ANCHOR, "a"], literal=True)
    return joined != anchor + alone


def _is_plain(tokenizer: Any) -> bool:
    """Whether its class adds nothing of its own to what the backend encodes."""
    from transformers import PreTrainedTokenizerFast

    steps = ("__call__", "_encode_plus")
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), step, None) is getattr(PreTrainedTokenizerFast, step, "moved") for step in steps
    )


def _backend_ids(tokenizer: Any, texts: list[str], literal: bool) -> Ids:
    """As `_own_ids`, in three quarters of the time: no offsets, masks or tokens are gathered."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = literal
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _own_ids(tokenizer: Any, texts: list[str], literal: bool) -> Ids:
    encoded: Ids = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=literal, return_attention_mask=False, verbose=False
    )["input_ids"]
    return encoded
