"""Named templates: how messages become prompt ids and how a response ends, for training and generation alike.

| name | prompt | response |
|---|---|---|
| `seed` | `指令:{query}\\n输出:` BOS | response EOS |
| `plain` | BOS `User:\\n{query}\\nAssistant:\\n` | response EOS |
| `chat` | the tokenizer's own chat template with its generation prompt | response and the template's end of turn |

Prompt and response are tokenized apart and joined, so that the prompt ids are the ones a model is given when it has to
answer, and the same on both sides of a pair. There is one BOS where the tokenizer has one, and one EOS at the end of
a whole response; text that merely spells a special token is tokenized as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

# Contents that end in all the ways a tokenizer may join with what follows: what stays the same after each is the frame.
_PROBES = ("", "a", "7.", "a 7", "好。", "?\n")


@dataclass(frozen=True)
class Template:
    """How one tokenizer writes a conversation. Made by `template`.

    Attributes:
        transcript: messages to the text between `lead_ids` and `tail_ids`.
        literal: whether special tokens spelled in that text are mere text.
        lead_ids: ids that every prompt begins with, the BOS of most templates.
        tail_ids: ids that every prompt ends with, after its text.
        end_ids: ids that close a whole response; the last of them stops a generation.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    transcript: Callable[[Messages], str]
    literal: bool
    lead_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def render_prompt(self, messages: Messages) -> str:
        """The prompt as text for people, and for `encode_prompts`.

        Raises:
            DataError: the last message is not the user's, or the template cannot write these messages.
        """
        if not messages or messages[-1]["role"] != "user":
            raise DataError("a prompt must end with a message of the user", found=f"{len(messages)} messages")
        return self.transcript(messages)

    def prompt_ids(self, batch: Sequence[Messages]) -> list[list[int]]:
        """What the model is fed to answer each conversation, generation prompt included. Raises as `render_prompt`."""
        return self.encode_prompts([self.render_prompt(messages) for messages in batch])

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts that `render_prompt` wrote."""
        encoded = _encode(self.tokenizer, texts, self.literal)
        return [[*self.lead_ids, *_after(self.lead_ids, ids), *self.tail_ids] for ids in encoded]

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of responses as they stand, white space included, without `end_ids`."""
        return _encode(self.tokenizer, texts, literal=True)

    @cached_property
    def header_ids(self) -> tuple[int, ...]:
        """The end of every prompt, which asks for the answer and must survive a cut; `lead_ids` are not part of it."""
        prompts = self.encode_prompts([self.transcript([{"role": "user", "content": probe}]) for probe in _PROBES])
        return _common_end([ids[len(self.lead_ids) :] for ids in prompts])

    @property
    def stop_ids(self) -> list[int]:
        """Ids at which a generation is over, ascending."""
        eos = self.tokenizer.eos_token_id
        return sorted({self.end_ids[-1]} | ({eos} if eos is not None else set()))

    def check_room(self, max_prompt_length: int) -> None:
        """Raises ConfigError when a prompt of that many ids cannot even hold what every prompt must keep."""
        needed = len(self.lead_ids) + len(self.header_ids)
        if needed > max_prompt_length:
            raise ConfigError(
                f"no prompt fits: the template `{self.name}` alone takes {needed} tokens of every prompt",
                expected=f"room for at least {needed} tokens",
                found=f"room for {max_prompt_length}",
                fix="raise tokenize.max_length or tokenize.max_prompt_length",
            )

    def cut_prompt(self, ids: list[int], max_prompt_length: int) -> list[int]:
        """`ids` cut from the left to the limit, keeping `lead_ids` first. The cut depends on nothing but the prompt."""
        if len(ids) <= max_prompt_length:
            return ids
        return [*self.lead_ids, *ids[len(ids) - max_prompt_length + len(self.lead_ids) :]]


def template(name: str, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The template of that name for a tokenizer.

    Raises:
        ConfigError: there is no such template, or the tokenizer lacks a special token or chat template it needs.
    """
    if name not in _TEMPLATES:
        raise ConfigError(f"there is no template `{name}`", expected=f"one of {', '.join(_TEMPLATES)}")
    return _TEMPLATES[name](tokenizer)


def seed_transcript(messages: Messages) -> str:
    """`指令:{query}\\n输出:`; earlier turns stand before it in the same form, a system message on a line of its own."""
    forms = {"user": "指令:{}\n输出:", "assistant": "{}\n", "system": "{}\n"}
    return "".join(forms[message["role"]].replace("{}", message["content"]) for message in messages)


def plain_transcript(messages: Messages) -> str:
    """Each turn as its speaker's name and its text on lines of their own, then `Assistant:` on a line."""
    return "".join(f"{message['role'].capitalize()}:\n{message['content']}\n" for message in messages) + "Assistant:\n"


# Those that need no tokenizer: a vocabulary can be trained on what they write.
TRANSCRIPTS: Mapping[str, Callable[[Messages], str]] = {"seed": seed_transcript, "plain": plain_transcript}


def _seed(tokenizer: "PreTrainedTokenizerBase") -> Template:
    bos, eos = _special(tokenizer, "bos", "seed"), _special(tokenizer, "eos", "seed")
    return Template("seed", tokenizer, seed_transcript, True, (), (bos,), (eos,))


def _plain(tokenizer: "PreTrainedTokenizerBase") -> Template:
    lead = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    return Template("plain", tokenizer, plain_transcript, True, lead, (), (_special(tokenizer, "eos", "plain"),))


def _chat(tokenizer: "PreTrainedTokenizerBase") -> Template:
    if not tokenizer.chat_template:
        raise ConfigError(
            "this tokenizer has no chat template",
            where=str(tokenizer.name_or_path),
            fix='set tokenize.template = "plain", or name the instruction-tuned model',
        )
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)

    def transcript(messages: Messages) -> str:
        return _chat_text(tokenizer, messages, special, generation_prompt=True)

    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": probe}] for probe in _PROBES]
    try:
        first = _encode(tokenizer, [transcript(turns[0][:1])], literal=False)[0]
        whole = [_chat_text(tokenizer, turn, special, generation_prompt=False) for turn in turns]
    except DataError as error:
        raise ConfigError(
            "the tokenizer's chat template cannot write a question and its answer", found=str(error)
        ) from None
    end = _end_of_turn(tokenizer, _common_end(_encode(tokenizer, whole, literal=False)))
    bos = tokenizer.bos_token_id
    # A BOS in the middle only is the template's own business; else there is one, at the beginning.
    lead = () if bos is None or (bos in first and first[0] != bos) else (int(bos),)
    return Template("chat", tokenizer, transcript, False, lead, (), end)


_TEMPLATES: Mapping[str, Callable[["PreTrainedTokenizerBase"], Template]] = {
    "seed": _seed,
    "plain": _plain,
    "chat": _chat,
}


def _chat_text(tokenizer: Any, messages: Messages, special: Sequence[str], *, generation_prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    spelled = [token for token in special if any(token in message["content"] for message in messages)]
    if spelled:
        # The template's text is parsed for special tokens, so this one would end or begin a turn.
        raise DataError(f"a message spells the special token {spelled[0]}")
    turns = [dict(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DataError("the chat template refuses these messages", found=str(error)) from None


def _end_of_turn(tokenizer: Any, after: Sequence[int]) -> tuple[int, ...]:
    """What closes a response: of the ids after an answer, those up to its EOS, or else to the first special token.

    A template that writes neither is closed by EOS.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    closing = {tokenizer.eos_token_id} & set(after) or special & set(after)
    if not closing:
        return (_special(tokenizer, "eos", "chat"),)
    return tuple(after[: next(at for at, index in enumerate(after) if index in closing) + 1])


def _special(tokenizer: Any, which: str, name: str) -> int:
    index = getattr(tokenizer, f"{which}_token_id")
    if index is None:
        raise ConfigError(
            f"the template `{name}` needs a tokenizer with {which.upper()}",
            found=f"{which}_token is not set",
            where=str(tokenizer.name_or_path),
            fix=f"set {which}_token in its tokenizer_config.json",
        )
    return int(index)


def _encode(tokenizer: Any, texts: Sequence[str], literal: bool) -> list[list[int]]:
    if not texts:
        return []
    encoded = (_backend_ids if _is_plain(tokenizer) else _own_ids)(tokenizer, list(texts), literal)
    if not literal:
        return encoded
    # A vocabulary of whole words gives BOS and EOS to text that spells them, whatever it is asked.
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id}
    return [ids if frame.isdisjoint(ids) else [index for index in ids if index not in frame] for ids in encoded]


def _is_plain(tokenizer: Any) -> bool:
    """Whether its class adds nothing of its own to what the backend encodes."""
    from transformers import PreTrainedTokenizerFast

    steps = ("__call__", "_encode_plus")
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), step, None) is getattr(PreTrainedTokenizerFast, step, "moved") for step in steps
    )


def _backend_ids(tokenizer: Any, texts: list[str], literal: bool) -> list[list[int]]:
    """As `_own_ids`, in three quarters of the time: no offsets, masks or tokens are gathered."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = literal
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _own_ids(tokenizer: Any, texts: list[str], literal: bool) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=literal, return_attention_mask=False, verbose=False
    )["input_ids"]
    return encoded


def _after(lead_ids: Sequence[int], ids: list[int]) -> list[int]:
    """`ids` without the lead that a chat template has written itself, once or twice."""
    return ids[next((at for at, index in enumerate(ids) if index not in lead_ids), len(ids)) :]


def _common_end(lists: Sequence[Sequence[int]]) -> tuple[int, ...]:
    shortest = min(lists, key=len)
    length = next(
        (taken for taken in range(len(shortest)) if len({ids[-1 - taken] for ids in lists}) > 1), len(shortest)
    )
    return tuple(shortest[len(shortest) - length :])
