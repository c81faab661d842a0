"""The chat template of an exported tokenizer: the one whose prompts are those that the model was trained on."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from engine.errors import DataError
from engine.preferences.templates import Template

Messages = Sequence[Mapping[str, str]]

# What the templates write that no tokenizer ships. The BOS goes where they put it.
_SEED = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '指令:' + message['content'] + '\\n输出:' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)
_PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ (message['role'] | capitalize) + ':\\n' + message['content'] + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
_WRITTEN: Mapping[str, str] = {"seed": _SEED, "plain": _PLAIN}
_TALKS: tuple[Messages, ...] = (
    ({"role": "user", "content": "How do I bake a cake? 好。"},),
    (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "Yes, 7."},
        {"role": "user", "content": "And then?\n"},
    ),
)


def chat_template_of(form: Template) -> str | None:
    """A Jinja template under which the tokenizer itself writes the prompts of `form`, id for id; None where none does.

    Tried are the tokenizer's own, the same with a BOS in front, which is what `chat` adds where it writes none, and
    the two templates of the project. One conversation of one turn and one of several are written both ways.
    """
    own = form.tokenizer.chat_template
    own = [own, f"{{{{ bos_token }}}}{own}"] if isinstance(own, str) else []
    wanted = _prompts(form)
    candidates = [_WRITTEN[form.name]] if form.name in _WRITTEN else own
    return next((each for each in candidates if wanted and _writes(each, form, wanted)), None)


def _prompts(form: Template) -> list[tuple[Messages, list[int]]]:
    """Conversations that the template takes, with their ids; some take no second turn."""
    found = []
    for talk in _TALKS:
        with suppress(DataError):
            found.append((talk, form.prompt_ids([talk])[0]))
    return found


def _writes(candidate: str, form: Template, wanted: Sequence[tuple[Messages, list[int]]]) -> bool:
    tokenizer: Any = form.tokenizer
    how = {"chat_template": candidate, "tokenize": True, "add_generation_prompt": True, "return_dict": False}
    try:
        return all(tokenizer.apply_chat_template([dict(turn) for turn in talk], **how) == ids for talk, ids in wanted)
    except Exception:  # whatever Jinja and the tokenizer raise: then it is not this one
        return False
