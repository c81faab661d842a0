"""Turns of a conversation, however they are written: `role` and `content`, `from` and `value`, or one text with marks.

What a text model cannot be trained on (calls of tools, images) is refused with a reason of its own.
"""

import re
from collections.abc import Mapping, Sequence

from engine.preferences.comparisons import Message, Refused
from engine.preferences.shapes import ASSISTANTS, TURN_MARK, Beside, either

_TOOLS = frozenset({"tool", "tools", "tool_call", "tool_calls", "tool_response", "function", "function_call",
                    "function_response", "observation", "ipython"})  # fmt: skip
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "questioner"), "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
}
_CALLS = ("tool_calls", "function_call")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_BESIDE = frozenset({"tools", "functions", *_MEDIA})
_LINE_MARK = re.compile(r"(?:\A\s*|\n)(Human|Assistant):")
_NONE = ("", "[]", "{}", "null", "None")


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """A turn of the assistant."""
    return {"role": "assistant", "content": text}


def asked(value: object, where: str = "prompt") -> list[Message]:
    """The turns of a prompt: one text, or messages. Raises Refused as `turns`."""
    return [user(value)] if isinstance(value, str) else turns(value, where)


def answered(value: object, where: str) -> list[Message]:
    """The turns of an answer: one text, one message, or several. Raises Refused as `turns`."""
    return [assistant(value)] if isinstance(value, str) else turns(value, where)


def turns(value: object, where: str) -> list[Message]:
    """Messages of any spelling as `role` (system, user, assistant) and `content`, whose text is kept as it is.

    Args:
        value: one message, or a list of them; content is text, or a list of parts that are text.
        where: the column, for people.

    Raises:
        Refused: something is no message, of an unknown role, without text, or of tools or images.
    """
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, list | tuple):
        raise Refused("not_a_message", f"`{where}` is of type {type(value).__name__}")
    return [_turn(message, f"`{where}`, message {place}") for place, message in enumerate(messages, 1)]


def _turn(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise Refused("not_a_message", f"{where} is of type {type(message).__name__}")
    name = either(message, "role", "from")
    spoken = name.strip().casefold() if isinstance(name, str) else ""
    if spoken in _TOOLS or any(message.get(key) for key in _CALLS):
        raise Refused("tool_content", f"{where}: {spoken}")
    if spoken not in ROLES:
        raise Refused("unknown_role", f"{where}: {spoken or 'none'}; known: {', '.join(ROLES)}")
    return {"role": ROLES[spoken], "content": _content(either(message, "content", "value"), where)}


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise Refused("null_field", f"{where} has no content")
    if isinstance(value, list | tuple):
        return "".join(_part(part, where) for part in value)
    raise Refused("not_a_string", f"{where} has content of type {type(value).__name__}")


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if (
        isinstance(part, Mapping)
        and kind in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    ):
        return str(part["text"])
    if isinstance(kind, str) and any(medium in kind for medium in ("image", "video", "audio")):
        raise Refused("image_content", f"{where} has a part of type {kind}")
    raise Refused("not_a_string", f"{where} has a part of type {kind}")


def check_text_alone(row: Mapping[str, object], ignore: frozenset[str] = frozenset()) -> None:
    """Raises Refused when a row comes with tools, images, sound or video beside its text, in a column not ignored."""
    if _BESIDE.isdisjoint(row):
        return
    full = [name for name in row if name in _BESIDE - ignore and row[name] and row[name] not in _NONE]
    if full:
        reason = "image_content" if full[0] in _MEDIA else "tool_content"
        raise Beside(reason, f"`{full[0]}` is not empty", *full)


def is_spoken(value: object) -> bool:
    """Whether a value is a message, or a list of messages, each with a role that is known and something said."""
    messages = [value] if isinstance(value, Mapping) else value
    return isinstance(messages, list | tuple) and bool(messages) and all(map(_is_said, messages))


def _is_said(message: object) -> bool:
    if not isinstance(message, Mapping):
        return False
    role = either(message, "role", "from")
    known = isinstance(role, str) and role.strip().casefold() in (*ROLES, *_TOOLS)
    return known and any(name in message for name in ("content", "value", *_CALLS))


def marked_turns(text: str) -> list[Message]:
    """The turns of a dialogue in the manner of hh-rlhf (Anthropic/hh-rlhf), stripped; none if text stands before."""
    before, *parts = TURN_MARK.split(text)
    if before.strip():
        return []
    speakers = {"Human": user, "Assistant": assistant}
    return [speakers[who](content.strip()) for who, content in zip(parts[::2], parts[1::2], strict=True)]


def marked_prompt(text: str) -> list[Message]:
    """The turns of a dialogue with marks that ends where the assistant is to speak; none if `text` is no such prompt.

    The marks may stand on new lines without an empty one before, as `Human: …` and `Assistant:` on the last line.
    """
    if not text.rstrip().endswith("Assistant:"):
        return []
    for mark in (TURN_MARK, _LINE_MARK):
        before, *parts = mark.split(text)
        spoken = list(zip(parts[::2], parts[1::2], strict=True))
        if spoken and not before.strip() and (spoken[0][0], spoken[-1][0]) == ("Human", "Assistant"):
            *said, (_, begun) = spoken
            if not begun.strip():
                return [user(words.strip()) if who == "Human" else assistant(words.strip()) for who, words in said]
    return []


def exchanged(history: Sequence[Sequence[str]]) -> list[Message]:
    """The turns of a list of questions and their answers."""
    return [turn for question, answer in history for turn in (user(question), assistant(answer))]
