"""The lines of `--set` that a message on data names, as a shell takes them."""

import shlex
from collections.abc import Iterable

from engine.preferences.ledger import shown
from engine.toml_text import assignment

_TEXTS = "prompt/chosen/rejected"
# Formats whose answers may be messages or texts, and those of texts alone that read the same columns.
_AS_TEXTS = dict.fromkeys((_TEXTS, "messages", "messages-implicit", "field map"), _TEXTS)
_AS_TEXTS |= {"query/chosen/rejected": "query/chosen/rejected"}


def setting(key: str, value: str) -> str:
    """The line that sets a key of `download`."""
    return f"--set {shlex.quote(f'download.{key}={shown(value)}')}"


def ignoring(names: Iterable[str]) -> str:
    """The line that leaves columns out of account; it names all of them, those that are left out already too."""
    written = assignment("ignore", sorted({shown(name) for name in names})).replace(" = ", "=", 1)
    return f"--set {shlex.quote(f'download.{written}')}"


def reads_messages(name: str) -> str:
    """The format to ask for where cells of text are messages, for one that may have either."""
    return "messages" if name == "field map" else name


def reads_texts(name: str) -> str:
    """The format to ask for where the same cells are texts; empty where there is none."""
    return _AS_TEXTS.get(name, "")
