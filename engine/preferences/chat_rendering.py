"""A chat template's text of a conversation; what fails in the template is said in words, and trials end in time."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

TRIAL_SECONDS = 10.0  # a conversation of three sentences takes a millisecond


def render(tokenizer: "PreTrainedTokenizerBase", jinja: str, messages: Messages, *, header: bool) -> str:
    """The text that a template makes of messages.

    Args:
        header: whether the assistant's turn is begun after them.

    Raises:
        DataError: it refuses them, or fails; with a fix only where the template itself is what has to be mended.
    """
    from jinja2.exceptions import TemplateError

    turns = [dict(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(turns, chat_template=jinja, tokenize=False, add_generation_prompt=header)
        )
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        SyntaxError,
        TimeoutError,
        TypeError,
        ValueError,
    ) as error:
        said = type(error) is TemplateError  # what `raise_exception` raises
        raise DataError(
            "the chat template refuses these messages",
            found=str(error) or f"{type(error).__name__} in the template",
            fix=""
            if said
            else "mend the template there: it has `messages`, of which a question may be all, `add_generation_prompt`, "
            "`bos_token` and `eos_token`, and needs no files and no loops but over the messages",
        ) from None


def tried(tokenizer: "PreTrainedTokenizerBase", jinja: str, messages: Messages, *, header: bool) -> str:
    """As `render`, of a few messages that show how the template writes; one that takes too long is stopped."""
    with _stopped_after(TRIAL_SECONDS):
        return render(tokenizer, jinja, messages, header=header)


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs in Python for longer; in any thread, and nothing is left running."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def look(_frame: Any, _event: str, _argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"three short messages took it more than {seconds:g} s")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
