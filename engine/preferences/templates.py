"""Named templates: how messages become prompt ids and how a response ends, for training and generation alike.

| name | prompt | response |
|---|---|---|
| `seed` | `指令:{query}\\n输出:` BOS | response EOS |
| `plain` | BOS `User:\\n{query}\\nAssistant:\\n` | response EOS |
| `chat` | the tokenizer's own chat template with its generation prompt | response and the template's end of turn |

Any other is a chat template in Jinja, named or of a file, which becomes the tokenizer's own: see `chat_templates`.

Prompt and response are tokenized apart and joined, so that the prompt ids are the ones a model is given when it has to
answer, and the same on both sides of a pair. There is one BOS where the tokenizer has one, and one EOS or end of turn
at the end of a whole response; text that merely spells a special token is tokenized as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, DataError
from engine.preferences.chat_frames import Messages as Messages
from engine.preferences.chat_frames import frame_of
from engine.preferences.chat_templates import adopt, checked_name
from engine.preferences.text_ids import ids_going_on, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        opening_ids: ids that a chat template puts between the prompt's header and an answer; they are of the response.
        opening: white space that it puts before an answer; None where no chat template writes it.
        apart: whether an answer is tokenized as a text of its own, and not as one that goes on from the prompt.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    transcript: Callable[[Messages], str]
    literal: bool
    lead_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    opening_ids: tuple[int, ...] = ()
    opening: str | None = None
    apart: bool = True

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
        encoded = ids_of(self.tokenizer, texts, literal=self.literal)
        return [[*self.lead_ids, *_after(self.lead_ids, ids), *self.tail_ids] for ids in encoded]

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of responses as they stand, white space included, without `end_ids`.

        What a chat template puts before an answer is there, so that prompt, response and end are what it writes of the
        whole conversation.
        """
        opened = [f"{self.opening or ''}{text}" for text in texts]
        encoded = (ids_of if self.apart else ids_going_on)(self.tokenizer, opened, literal=True)
        return [[*self.opening_ids, *ids] for ids in encoded]

    def answer_text(self, ids: Sequence[int]) -> str:
        """What a model answered with these ids, without special tokens and what the template puts before an answer."""
        opened = len(self.opening_ids) if tuple(ids[: len(self.opening_ids)]) == self.opening_ids else 0
        text = str(self.tokenizer.decode(list(ids[opened:]), skip_special_tokens=True))
        return text.removeprefix(self.opening or "")

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


def template(name: str, tokenizer: "PreTrainedTokenizerBase", *, sealed: bool = False) -> Template:
    """The template of that name for a tokenizer; one in Jinja becomes the tokenizer's own chat template.

    Args:
        sealed: whether a model was trained with it; see `frame_of`.

    Raises:
        ConfigError: there is no such template, or the tokenizer lacks a special token or chat template it needs.
    """
    try:
        checked_name(name)
    except ValueError as error:
        raise ConfigError(f"there is no template `{name}`", expected=str(error)) from None
    if name in _OWN:
        return _OWN[name](tokenizer)
    adopt(name, tokenizer)
    return _chat(tokenizer, sealed)


def seed_transcript(messages: Messages) -> str:
    """`指令:{query}\\n输出:`; earlier turns stand before it in the same form, a system message on a line of its own."""
    forms = {"user": "指令:{}\n输出:"}
    return "".join(forms.get(message["role"], "{}\n").replace("{}", message["content"]) for message in messages)


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


def _chat(tokenizer: "PreTrainedTokenizerBase", sealed: bool) -> Template:
    frame = frame_of(tokenizer, sealed=sealed)
    return Template(
        "chat",
        tokenizer,
        frame.transcript,
        False,
        frame.lead_ids,
        (),
        frame.end_ids,
        opening_ids=frame.opening_ids,
        opening=frame.opening,
        apart=frame.apart,
    )


_OWN: Mapping[str, Callable[["PreTrainedTokenizerBase"], Template]] = {"seed": _seed, "plain": _plain}


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


def _after(lead_ids: Sequence[int], ids: list[int]) -> list[int]:
    """`ids` without the lead that a chat template has written itself, once or twice."""
    return ids[next((at for at, index in enumerate(ids) if index not in lead_ids), len(ids)) :]


def _common_end(lists: Sequence[Sequence[int]]) -> tuple[int, ...]:
    shortest = min(lists, key=len)
    length = next(
        (taken for taken in range(len(shortest)) if len({ids[-1 - taken] for ids in lists}) > 1), len(shortest)
    )
    return tuple(shortest[len(shortest) - length :])
