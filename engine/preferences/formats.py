"""The formats that comparisons come in, by name.

To add one, write a function of its values in `layouts` and give it a line in `FORMATS`.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace

from engine.errors import ConfigError
from engine.preferences import layouts
from engine.preferences.comparisons import Message, Pair, Ranking, normalised, prompt_id
from engine.preferences.recognition import Detection, recognise
from engine.preferences.rows import Format
from engine.preferences.shapes import ANYTHING, MESSAGES, TEXT, Column, Shape

__all__ = [
    "FORMATS",
    "FORMAT_NAMES",
    "Detection",
    "Format",
    "Message",
    "Pair",
    "Ranking",
    "candidates",
    "normalised",
    "prompt_id",
    "recognise",
]

Columns = dict[str, Column]
_FIELD_MAP = "field map"
_SCORE_NAMES = {
    side: (f"score_{side}", f"{side}_score", f"{side}_rating", f"{side}-rating") for side in ("chosen", "rejected")
}
_SPOKEN = frozenset({Shape.MESSAGE, Shape.TURNS, Shape.REPLY})  # what tells messages from texts


def _column(*names: str, shapes: frozenset[Shape] = TEXT, optional: bool = False) -> Column:
    return Column(names, shapes | {Shape.NOTHING} if optional else shapes)


def _sides(shapes: frozenset[Shape], chosen: str = "chosen", rejected: str = "rejected") -> Columns:
    """Two answers, and what each was given for a score, if the row says."""
    return {
        "chosen": _column(chosen, shapes=shapes),
        "rejected": _column(rejected, shapes=shapes),
        "score_chosen": _column(*_SCORE_NAMES["chosen"], shapes=ANYTHING, optional=True),
        "score_rejected": _column(*_SCORE_NAMES["rejected"], shapes=ANYTHING, optional=True),
    }


# Shapes. A prompt is text or messages; an answer is text, one message, or the messages that follow the prompt.
_PROMPT = TEXT | MESSAGES | {Shape.MESSAGE}
_ANSWER = TEXT | {Shape.MESSAGE, Shape.REPLY, Shape.EMPTY}
_LIST = frozenset({Shape.TEXTS, Shape.REPLY, Shape.EMPTY})
_SCORES = frozenset({Shape.NUMBERS, Shape.TEXTS, Shape.EMPTY})

# Columns.
_SYSTEM = {"system": _column("system", "system_prompt", optional=True)}
_TEXTS = _SYSTEM | _sides(TEXT)
_ANSWERS = _SYSTEM | _sides(_ANSWER)
_INPUT = {"input": _column("input", optional=True)}
_INSTRUCTION = _SYSTEM | {
    "prompt": _column("instruction"),
    **_INPUT,
    "history": _column("history", shapes=frozenset({Shape.EXCHANGES, Shape.EMPTY}), optional=True),
}
_CONVERSATION = {"prompt": _column("conversations", shapes=MESSAGES)}

FORMATS = (
    Format(
        "prompt/chosen/rejected",
        "a prompt and two answers, all text",
        {"prompt": _column("prompt")} | _TEXTS,
        layouts.explicit,
    ),
    Format(
        "query/chosen/rejected",
        "a question and two answers, all text",
        {"prompt": _column("query")} | _TEXTS,
        layouts.explicit,
    ),
    Format(
        "hh-rlhf",
        "two whole dialogues as text, with the marks Human: and Assistant:",
        _TEXTS,
        layouts.marked,
        marks=frozenset({Shape.DIALOGUE}),
    ),
    Format(
        "messages",
        "a prompt and two answers to it, as messages",
        {"prompt": _column("prompt", shapes=_PROMPT)} | _ANSWERS,
        layouts.explicit,
        marks=_SPOKEN,
    ),
    Format(
        "messages-implicit",
        "two whole conversations as messages, the same up to the last turn",
        _SYSTEM
        | {"beside": _column("prompt", shapes=ANYTHING, optional=True)}
        | _sides(frozenset({Shape.TURNS, Shape.EMPTY})),
        layouts.implicit,
    ),
    Format(
        "messages/chosen/rejected",
        "messages up to the user's last turn, and two answers",
        {"prompt": _column("messages", shapes=MESSAGES)} | _ANSWERS,
        layouts.explicit,
    ),
    Format(
        "alpaca-ranking",
        "LLaMA-Factory: an instruction, maybe with input, history and system, and two answers",
        _INSTRUCTION | _sides(_ANSWER),
        layouts.alpaca,
    ),
    Format(
        "alpaca-list",
        "LLaMA-Factory, older: an instruction, and in `output` answers from the best to the worst",
        _INSTRUCTION | {"answers": _column("output", shapes=_LIST)},
        layouts.alpaca_list,
    ),
    Format(
        "sharegpt-ranking",
        "LLaMA-Factory: conversations up to the user's last turn, and two answers",
        _CONVERSATION | _ANSWERS,
        layouts.explicit,
    ),
    Format(
        "sharegpt",
        "conversations whose last turn holds a list of answers, from the best to the worst",
        _SYSTEM | {"prompt": _column("conversations", shapes=frozenset({Shape.RANKED}))},
        layouts.ranked_turn,
    ),
    Format(
        "sharegpt-list",
        "conversations up to the user's last turn, and a list of answers, from the best to the worst or with scores",
        _SYSTEM
        | _CONVERSATION
        | {
            "answers": _column("responses", "answers", "outputs", shapes=_LIST),
            "scores": _column("scores", "ratings", shapes=_SCORES, optional=True),
        },
        layouts.ranked_list,
    ),
    Format(
        "openai",
        "OpenAI preference fine-tuning: input.messages, preferred_output, non_preferred_output",
        _SYSTEM
        | {"prompt": _column("input", shapes=frozenset({Shape.REQUEST}))}
        | _sides(MESSAGES, "preferred_output", "non_preferred_output"),
        layouts.openai,
    ),
    Format(
        "ultrafeedback",
        "UltraFeedback: an instruction, and completions with a response and a score each",
        _SYSTEM
        | {
            "prompt": _column("instruction"),
            **_INPUT,
            "completions": _column("completions", shapes=frozenset({Shape.COMPLETIONS, Shape.EMPTY})),
        },
        layouts.ultrafeedback,
    ),
    Format(
        "argilla",
        "Argilla and distilabel: an instruction, a list of generations and a list of their ratings",
        _SYSTEM
        | {
            "prompt": _column("instruction", "input", "prompt", shapes=_PROMPT),
            "input": _column("input", shapes=_PROMPT, optional=True),
            "answers": _column("generations", "responses", shapes=_LIST),
            "scores": _column("ratings", "rating", "scores", shapes=_SCORES),
        },
        layouts.argilla,
    ),
)
_MAPPED = Format(
    _FIELD_MAP,
    "columns that download.fields names: a prompt and two answers, each text or messages",
    {"prompt": _column("prompt", shapes=_PROMPT), **_ANSWERS},
    layouts.explicit,
)
FORMAT_NAMES = tuple(each.name for each in (*FORMATS, _MAPPED))


def candidates(
    fields: Mapping[str, str] | None = None,
    name: str = "",
    ranking: Ranking = "all",
    ignore: Collection[str] = (),
) -> list[Format]:
    """The formats to look for.

    Args:
        fields: other names of the columns prompt, chosen, rejected and system; empty: the format's own. A name for
            the prompt alone says that this is a prompt beside two answers, and no other format is looked for.
        name: the only format to look for; empty: all.
        ranking: what is made of more than two answers: a pair of every two, or one of the best and the worst.
        ignore: names of columns that are not looked at.

    Raises:
        ConfigError: there is no format of that name, or none with these columns, or a column is both named and ignored.
    """
    renamed = {field: column for field, column in (fields or {}).items() if column}
    known = _named(name) if name else [_MAPPED] if "prompt" in renamed else list(FORMATS)
    found = [_renamed(each, renamed, ranking) for each in known if renamed.keys() <= each.columns.keys()]
    if not found:
        raise ConfigError(
            f"the format `{name}` has no column for {' and '.join(renamed)}",
            expected=f"names for {', '.join(key for each in known for key in each.columns)}",
            fix="take download.fields or download.format away",
        )
    if name == _FIELD_MAP and "prompt" not in renamed:
        raise ConfigError(
            "the format `field map` needs to know the column of the prompt", fix="set download.fields.prompt"
        )
    return _without(found, renamed, ignore)


def _without(found: list[Format], renamed: Mapping[str, str], ignore: Collection[str]) -> list[Format]:
    if both := sorted({*ignore}.intersection(renamed.values())):
        raise ConfigError(
            f"download.fields names {', '.join(both)}, and download.ignore leaves it out", fix="take one of them away"
        )
    seeing = [each.without(ignore) for each in found]
    left = [each for each in seeing if all(column.names or column.optional for column in each.columns.values())]
    if not left:
        needed = [" or ".join(column.names) for each in found for column in each.needed]
        raise ConfigError(
            "download.ignore leaves no format that could be read",
            expected=f"to look at {', '.join(dict.fromkeys(needed))}",
            found=", ".join(sorted(ignore)),
            fix="take columns of the comparison out of download.ignore",
        )
    return left


def _named(name: str) -> list[Format]:
    found = [each for each in (*FORMATS, _MAPPED) if each.name == name]
    if not found:
        near = difflib.get_close_matches(name, FORMAT_NAMES, 1, 0.4)
        raise ConfigError(
            f"there is no data format `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""),
            expected=f"one of {', '.join(FORMAT_NAMES)}",
            fix="set download.format; empty: it is told from the data",
        )
    return found


def _renamed(each: Format, fields: Mapping[str, str], ranking: Ranking) -> Format:
    columns = {key: replace(column, names=(fields[key],)) if key in fields else column
               for key, column in each.columns.items()}  # fmt: skip
    return replace(each, columns=columns, ranking=ranking, given=frozenset(fields))
