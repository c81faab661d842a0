"""What to type in place of a loss that is refused: lines for a shell, which read as they stand."""

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence

from engine.keys import nearest

ALLOWED = {
    "weight": "a number of 0 or more (at 0 the term is left out)",
    "label_smoothing": "a number from 0 to less than 0.5",
    "discopop_tau": "a number greater than 0 and at most 1",
    "simpo_gamma": "a number of 0 or more",
}
_EXAMPLES = {"weight": 0.5, "label_smoothing": 0.1, "discopop_tau": 0.05, "simpo_gamma": 1.0}
_ALSO = {
    "dpo": "sigmoid",
    "cdpo": "sigmoid",
    "rdpo": "robust",
    "slic": "hinge",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "apo": "apo_zero",
    "nll": "sft",
}
_BARE_WORD = re.compile(r"""(?<![\w."'+-])([A-Za-z]\w*)\b(?!\s*=|["'])""")


def setting(key: str, value: str) -> str:
    """`--set` with a key of the stage train and a value in TOML, or a bare name, as a shell takes it."""
    return f"--set {shlex.quote(f'train.{key}={value}')}"


def term_line(name: str, parameter: str = "weight") -> str:
    """A loss of one term with a parameter that it has."""
    return setting("loss", f'[{{name="{name}", {parameter}={_EXAMPLES[parameter]}}}]')


def parameter_line(name: str, parameter: str, parameters: Mapping[str, tuple[str, ...]]) -> str:
    """A loss that has a parameter: the one of that name, else the first there is."""
    having = [loss for loss, own in parameters.items() if parameter in ("weight", *own)]
    return term_line(name if name in having else having[0], parameter)


def unknown_loss(name: str, known: Mapping[str, object]) -> str:
    """What is expected in place of a name that no loss has: all names, the one that was meant, and a line."""
    meant = _ALSO.get(name.lower().replace("-", "_"), "")
    near = f"; did you mean `{meant}`?" if meant else nearest(name.lower(), known)
    return f"one of {', '.join(known)}{_with(near, setting('loss', _named(near) or 'sigmoid'))}"


def unknown_parameter(name: str, parameter: str, own: Sequence[str]) -> str:
    """What is expected in place of a parameter that no loss has: those of this one, the one meant, and a line."""
    near = nearest(parameter, own)
    return f"{', '.join(own)} of {name}, not {parameter}{_with(near, term_line(name, _named(near) or own[-1]))}"


def unquoted(text: str) -> str:
    """What is expected in place of a list that is no TOML, which a shell leaves of one whose quotes it took."""
    line = setting("loss", _requoted(text) or '[{name="sigmoid", weight=0.5}]')
    return f"a list whose texts are in double quotes, and all of it in single ones for the shell{_with('', line)}"


def unlike_a_loss() -> str:
    """What is expected in place of a value that is neither a name nor a list of terms."""
    return f"the name of a loss or a list of terms{_with('', setting('loss', 'sigmoid'))}, or {term_line('sigmoid')}"


def _with(near: str, line: str) -> str:
    """The line as an example, after a question for what was meant where there is one."""
    return f"{near} For example {line}" if near else f"; for example {line}"


def _named(near: str) -> str:
    return near.split("`")[1] if near else ""


def _requoted(text: str) -> str:
    """The list that was meant, its bare words in quotes; nothing where that is no TOML either."""
    listed = _BARE_WORD.sub(r'"\1"', text.strip())
    listed = listed if listed.startswith("[") else f"[{listed}]"
    try:
        tomllib.loads(f"value = {listed}")
    except (ValueError, RecursionError):
        return ""
    return listed
