"""What a tokenizer's chat template puts around a conversation, found out by writing a few."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, DataError
from engine.preferences.chat_endings import end_of_turn
from engine.preferences.chat_rendering import Messages as Messages
from engine.preferences.chat_rendering import render, tried
from engine.preferences.chat_templates import SUFFIX, chosen, frozen
from engine.preferences.text_ids import ids_going_on, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that no template writes itself, and that end as no white space does.
_SYSTEM = {"role": "system", "content": "You add small numbers."}
_QUESTION = {"role": "user", "content": "What is 2 + 3?"}
_ANSWER = {"role": "assistant", "content": "It is 5, as 2 + 3 = 5."}
_NEXT = {"role": "user", "content": "Then what is 4 + 7?"}
# All that templates change in a text: quotes, escapes, markup, letters, white space.
_HARD = {"role": "user", "content": ' "It\'s" <b>Aa</b> & {x}\t\\n 7%\r\n\n\n好, É-_*#  or `not`? '}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # how Python writes what has no text


@dataclass(frozen=True)
class Frame:
    """How a chat template writes what is asked, and what it puts around the answer.

    Attributes:
        transcript: messages to the text of a prompt, generation header included. Raises DataError where the template
            refuses them.
        lead_ids: ids that every prompt begins with: BOS, where the tokenizer has one.
        opening_ids: ids the template writes after the generation header before every answer, as an empty thought.
        opening: white space that it writes before an answer.
        apart: whether what follows a prompt has, in a conversation, the ids that it has as a text of its own: a
            tokenizer may put a space before whatever follows a special token.
        end_ids: ids that close an answer.
    """

    transcript: Callable[[Messages], str]
    lead_ids: tuple[int, ...]
    opening_ids: tuple[int, ...]
    opening: str
    apart: bool
    end_ids: tuple[int, ...]


def frame_of(tokenizer: "PreTrainedTokenizerBase", *, sealed: bool = False) -> Frame:
    """The frame of a tokenizer's own chat template.

    Args:
        sealed: whether a model was trained with it, which is past refusing for what a better template would have.

    Raises:
        ConfigError: it has none, or one that cannot write a question and its answer, leaves out earlier turns, or
            writes no generation header; or its answers are closed by neither an added token nor EOS.
    """
    jinja = frozen(chosen(tokenizer), str(tokenizer.name_or_path))
    try:
        prompt = tried(tokenizer, jinja, [_QUESTION], header=True)
        before, tail = _around_the_answer(tokenizer, jinja, prompt)
        if not sealed:
            _check_turns(tokenizer, jinja)
    except DataError as error:
        raise ConfigError(
            "the chat template cannot write a question and its answer",
            found=error.found or error.problem,
            where=str(tokenizer.name_or_path),
            fix=error.fix
            or "a conversation may have a question of the user and nothing before it; write the template for that",
        ) from None
    head = before.rstrip()
    opening, answer = before[len(head) :], _ANSWER["content"]
    opening_ids, _ = _following(tokenizer, prompt, head)
    _, apart = _following(tokenizer, prompt + head, opening + answer)
    end_ids = end_of_turn(tokenizer, tail, sealed=sealed)
    transcript = _transcript(tokenizer, jinja, end_ids)
    return Frame(transcript, _lead(tokenizer, prompt), tuple(opening_ids), opening, apart, end_ids)


def _around_the_answer(tokenizer: Any, jinja: str, prompt: str) -> tuple[str, str]:
    """What stands between a prompt and its answer, and what after the answer. Raises DataError and ConfigError."""
    whole = tried(tokenizer, jinja, [_QUESTION, _ANSWER], header=False)
    answered, found, tail = whole.rpartition(_ANSWER["content"])
    if not found or _QUESTION["content"] not in prompt:
        raise DataError("it leaves out what is said")
    if _ADDRESS.search(whole):
        raise DataError("it writes an address in memory, which is another one each time", fix="take it out of it")
    if not answered.startswith(prompt):  # the header holds more than a finished turn does, as the begin of a thought
        return "", tail
    before = answered[len(prompt) :]
    if before.strip() and prompt == tried(tokenizer, jinja, [_QUESTION], header=False):
        raise ConfigError(
            "the chat template writes no generation header: a prompt would not end where the answer begins",
            expected=f"{before!r} at the end of a prompt",
            where=str(tokenizer.name_or_path),
            fix="end the template with {% if add_generation_prompt %}…{% endif %}, in a copy of it with the name of a "
            f"{SUFFIX} file, and set tokenize.template to its path",
        )
    return before, tail


def _check_turns(tokenizer: Any, jinja: str) -> None:
    """Refuses a template that loses a turn without a word; one that says that it takes a single one does not.

    Raises DataError where the template fails at them, or takes too long.
    """
    turns = [_QUESTION, _ANSWER, _NEXT]
    try:
        text = tried(tokenizer, jinja, turns, header=True)
    except DataError as error:
        if error.fix:  # it is no refusal of the template's own
            raise
        return
    if lost := _lost(text, turns):
        raise ConfigError(
            f"the chat template leaves out a turn of the {lost}",
            expected="what each message says, in their order",
            found=f"{text!r} of {len(turns)} messages",
            where=str(tokenizer.name_or_path),
            fix="let it loop over all of `messages`; one that is for a single question may say so with "
            "{{ raise_exception('…') }}",
        )


def _lost(text: str, messages: Messages) -> str:
    """The role of a message that a text leaves out, or has before one that it follows; empty where all are there.

    A system message may stand anywhere: some templates have it in the last question. White space is theirs to change.
    """
    at, text = 0, _solid(text)
    for message in messages:
        said, system = _solid(message["content"]), message["role"] == "system"
        found = text.find(said, 0 if system else at)
        if found < 0:
            return message["role"]
        at = at if system else found + len(said)
    return ""


def _solid(text: str) -> str:
    return "".join(text.split())


def _following(tokenizer: Any, before: str, text: str) -> tuple[list[int], bool]:
    """The ids that a text has after another, and whether they are those of a text of its own (see `Frame.apart`).

    Raises:
        ConfigError: they are neither those nor the ones of a text that goes on.
    """
    (going_on,), (alone,) = (way(tokenizer, [text], literal=False) for way in (ids_going_on, ids_of))
    (head,), (whole,) = (ids_of(tokenizer, [each], literal=False) for each in (before, before + text))
    rest = whole[len(head) :]
    if whole[: len(head)] != head or rest == going_on:  # a token that spans the two says nothing of either
        return going_on, False
    if rest == alone:
        return alone, True
    raise ConfigError(
        "the tokenizer writes an answer in a conversation in ids that it gives to no answer by itself",
        expected=f"{going_on} or {alone}",
        found=f"{rest} after {before[-20:]!r}",
        where=str(tokenizer.name_or_path),
        fix='set tokenize.template = "plain", or name a chat template that writes another header',
    )


def _transcript(tokenizer: Any, jinja: str, end_ids: tuple[int, ...]) -> Callable[[Messages], str]:
    added = tokenizer.added_tokens_decoder.items()
    special = tuple(token.content for index, token in added if token.special or index == end_ids[-1])
    leaves_out = _left_out(tokenizer, jinja)

    def transcript(messages: Messages) -> str:
        spelled = [token for token in special if any(token in message["content"] for message in messages)]
        if spelled:
            # The template's text is parsed for special tokens, so this one would end or begin a turn.
            raise DataError(f"a message spells the special token {spelled[0]}")
        text = render(tokenizer, jinja, messages, header=True)
        if lost := leaves_out(text, messages):
            raise DataError(f"the chat template leaves out what a {lost} message says")
        return text

    return transcript


def _left_out(tokenizer: Any, jinja: str) -> Callable[[str, Messages], str]:
    """What tells the role of a message that a text of the template leaves out; empty where it leaves none out.

    Where the template writes what is said in other signs, as escaped, only a system message can be told to be gone.
    What the assistant said before may lose its thoughts, as the templates of models that think have it.
    """
    even = {"role": "user", "content": "a" * len(_HARD["content"])}
    if not _loses(tokenizer, jinja, [_HARD]) or _loses(tokenizer, jinja, [even]):  # it cuts, and rewrites nothing
        return lambda text, messages: _lost(text, [each for each in messages if each["role"] != "assistant"])
    if not _loses(tokenizer, jinja, [_SYSTEM, _QUESTION]):
        return lambda text, messages: ""
    return lambda text, messages: "system" if any(each["role"] == "system" for each in messages) else ""


def _loses(tokenizer: Any, jinja: str, messages: Messages) -> bool:
    try:
        return bool(_lost(tried(tokenizer, jinja, messages, header=True), messages))
    except DataError:  # it refuses them, and then such a row, too
        return False


def _lead(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    bos = tokenizer.bos_token_id
    (ids,) = ids_of(tokenizer, [prompt], literal=False)
    # A BOS in the middle only is the template's own business; else there is one, at the beginning.
    return () if bos is None or (bos in ids and ids[0] != bos) else (int(bos),)
