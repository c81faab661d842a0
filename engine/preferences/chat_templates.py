"""Chat templates in Jinja: those that have a name here, those of a file, and what makes one fit a tokenizer.

A template of either kind becomes the tokenizer's own and is handed down as `chat`: the stages below, and whoever loads
an exported tokenizer, write conversations as the training did. The date is the same for ever: what a template would
write of today is written of one day, or the same pairs would be other ids tomorrow.

| name | system message | a turn ends with |
|---|---|---|
| `chatml` | a turn of its own | `<|im_end|>` |
| `llama-3` | a turn of its own | `<|eot_id|>` |
| `llama-2` | in the first question; every question begins with BOS | EOS |
| `mistral` | in the first question | EOS |
| `gemma` | in the first question | `<end_of_turn>` |
| `zephyr` | a turn of its own | EOS |
| `phi-3` | a turn of its own | `<|end|>` |
| `vicuna`, `alpaca` | instead of the usual opening | EOS |
| `deepseek` | before the first question | EOS |

All but `chatml`, `zephyr`, `phi-3` and `deepseek` strip the white space around what a message says.
"""

import difflib
import logging
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.preferences.chat_syntax import parsed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Name → what the template writes as one token, beside BOS and EOS.
NAMED: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "llama-2": (),
    "mistral": (),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "zephyr": (),
    "phi-3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "vicuna": (),
    "alpaca": (),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>"),
}
WRITTEN = ("seed", "plain", "chat")  # the others are Jinja of their own
SUFFIX = ".jinja"
TODAY = date(2024, 7, 26)  # what Llama 3's own template writes where there is no clock

_CLOCK = "strftime_now"
_log = logging.getLogger("dpo")


def checked_name(name: str) -> str:
    """`name` where it can be a template: one that is known, or the path of a file of Jinja.

    Raises:
        ValueError: it is neither; the message says what would be.
    """
    known = [*WRITTEN, *NAMED]
    if name in known or is_jinja(name):
        return name
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean `{near[0]}`?" if near else ""
    raise ValueError(f"one of {', '.join(known)}, or the path of a {SUFFIX} file{meant}")


def is_jinja(name: str) -> bool:
    """Whether it names a template that is not the tokenizer's and is Jinja: a named one, or a file."""
    return name in NAMED or name.endswith(SUFFIX)


def source(name: str) -> str:
    """The Jinja of a named template or a file, without what follows its last line.

    Raises:
        ConfigError: there is no such file, or it is no text, or there is nothing in it.
    """
    if name in NAMED:
        return (files(__package__) / "chat_templates" / f"{name}{SUFFIX}").read_text("utf-8").rstrip()
    try:
        text = Path(name).expanduser().read_text("utf-8-sig").rstrip()
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(f"there is no chat template to read at `{name}`", str(error).partition(":")[0]) from None
    if not text:
        raise _unreadable(f"the chat template at `{name}` is empty", "nothing but white space")
    return text


def _unreadable(problem: str, found: str) -> ConfigError:
    return ConfigError(
        problem,
        expected="a file of Jinja in UTF-8",
        found=found,
        where="tokenize.template",
        fix=f"check the path, or name one of {', '.join(NAMED)}",
    )


def control_tokens(name: str) -> tuple[str, ...]:
    """What the template writes as one token, beside BOS and EOS: a file with the very text of a named one has its own.

    Raises:
        ConfigError: as `source`.
    """
    if name in NAMED or not is_jinja(name):
        return NAMED.get(name, ())
    text = source(name)
    return next((tokens for other, tokens in NAMED.items() if source(other) == text), ())


def adopt(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Gives the tokenizer the chat template of that name as its own; with `chat` it keeps the one that it has.

    Either way a date in it stands still. Under `seed` and `plain` the tokenizer is left as it is.

    Raises:
        ConfigError: the template cannot be read or is no Jinja, or the tokenizer lacks a token that it writes.
    """
    if is_jinja(name):
        _check_tokens(name, tokenizer)
        tokenizer.chat_template = frozen(source(name), name)
    elif name == "chat" and (still := _frozen_all(tokenizer)) != tokenizer.chat_template:
        _log.warning("the tokenizer's chat template writes the date; it will always be %s", TODAY.isoformat())
        tokenizer.chat_template = still


def chosen(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template that a tokenizer writes a conversation with: of several the one named `default`.

    Raises:
        ConfigError: it has none, or several and none that is the default.
    """
    own, where = tokenizer.chat_template, str(tokenizer.name_or_path)
    if not own:
        raise ConfigError(
            "this tokenizer has no chat template",
            where=where,
            fix='set tokenize.template = "plain", name a chat template (as "chatml"), or name the instruction-tuned '
            "model",
        )
    if isinstance(own, str):
        return own
    if "default" not in own:
        raise ConfigError(
            "this tokenizer has several chat templates, and none is its default",
            expected="one named `default`",
            found=", ".join(sorted(own)),
            where=where,
            fix=f"save the one you mean as a {SUFFIX} file and set tokenize.template to its path",
        )
    return str(own["default"])


@cache
def frozen(jinja: str, where: str) -> str:
    """The template with a date that stands still, `TODAY`; one that asks for none is returned as it is.

    A date in a form that the template computes is refused when it is written.

    Raises:
        ConfigError: it is no Jinja, it draws at random, or it computes what may have any size.
    """
    from jinja2.nodes import Call, Const, Name

    tree, given = parsed(jinja, where)
    if _CLOCK not in given:
        return jinja
    calls = [call for call in tree.find_all(Call) if isinstance(call.node, Name) and call.node.name == _CLOCK]
    forms = {form.value for call in calls for form in call.args if isinstance(form, Const)}
    days = {form: TODAY.strftime(form) for form in sorted(forms, key=str) if isinstance(form, str)}
    # A macro hides the function of its name. The line break after its end is trimmed, as after any block.
    refusal = "raise_exception('it asks for the date in a form that is not written out in it')"
    return f"{{% macro {_CLOCK}(form) %}}{{{{ {days!r}[form] or {refusal} }}}}{{% endmacro %}}\n{jinja}"


def _frozen_all(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Each of a tokenizer's own templates, frozen; a tokenizer that has none keeps none."""
    own, where = tokenizer.chat_template, str(tokenizer.name_or_path)
    if isinstance(own, dict):
        return {name: frozen(jinja, where) for name, jinja in own.items()}
    return frozen(own, where) if own else own


def _check_tokens(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    from engine.preferences.text_ids import ids_of

    known, written = tokenizer.get_vocab(), control_tokens(name)
    lacking = [
        token
        for token in written
        if token not in known or known[token] not in ids_of(tokenizer, [token], literal=False)[0]
    ]
    if lacking:
        textual = ", ".join(other for other, tokens in NAMED.items() if not tokens)
        raise ConfigError(
            f"the chat template `{name}` writes tokens that this tokenizer does not have",
            expected=f"{', '.join(written)}, each one token",
            found=f"none for {', '.join(lacking)}",
            where=str(tokenizer.name_or_path),
            fix='set tokenize.template = "chat" for the tokenizer\'s own, or take one written in plain text: '
            f"{textual}; or add the tokens to tokenizer and model, and name that folder",
        )
