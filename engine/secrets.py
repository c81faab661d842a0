"""What a text may carry out of the process: no secret, and nothing that acts on a terminal or misleads its reader.

Texts for people pass through here: errors, logs, records of runs, manifests, reports. Rows of data do not: a pair is
kept as it came. Keys are digests of the values themselves, so that hiding one changes no key.
"""

import json
import logging
import os
import re
import shlex
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|API_KEY|ACCESS_KEY|SECRET|PASSWORD|AUTH_STRING)$", re.IGNORECASE)
_LEAST_CHARACTERS = 8  # what is shorter stands in ordinary words too
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@\"'<>]+(?:@[^\s/?#@\"'<>]+)*@")  # of a URL: user, password or both
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|pn[bu]_[A-Za-z0-9]{16,})"
)
# What acts on a terminal or misleads its reader: control characters (C0, DEL, C1), marks that turn the direction of
# writing, and breaks of line and paragraph.
_ACTING = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _ACTING}


def redact(text: str) -> str:
    """`text` with `***` in place of secrets.

    These are the values of environment variables whose names end in TOKEN, API_KEY, ACCESS_KEY, SECRET, PASSWORD or
    AUTH_STRING, if they have 8 characters or more, also as JSON, Python, a shell or a URL writes them; the user and
    the password in a URL; and whatever looks like a token of the Hub, OpenAI, GitHub or Prefect.
    """
    for value in _known():
        text = text.replace(value, HIDDEN)
    return _TOKENS.sub(HIDDEN, _CREDENTIALS.sub(f"{HIDDEN}@", text))


def redacted(value: Any) -> Any:
    """JSON-like `value` with every text in it redacted, keys of mappings included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(key): redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def visible(text: str) -> str:
    """`text` on one line that can be written and printed anywhere: control characters, breaks of line, marks of
    direction and lone surrogates as escapes.
    """
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode("utf-8")


def outgoing(text: str) -> str:
    """`text` for people, in the lines that it has: redacted, and every line of it `visible`."""
    return "\n".join(visible(line) for line in redact(text).split("\n"))


class Redacting(logging.Filter):
    """Takes secrets out of log records, tracebacks included. For a handler, or for a logger that others handle."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (shown := outgoing(said)) != said:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0]:
            text = record.exc_text or "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            record.exc_text = outgoing(text)  # a formatter takes this for the traceback
        return True


def _known() -> list[str]:
    """What the environment's secrets look like, the longest first: one may hold another."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAMES.search(name) and len(value.strip()) >= _LEAST_CHARACTERS
    }
    return sorted({form for value in values for form in _forms(value.strip())}, key=len, reverse=True)


def _forms(value: str) -> tuple[str, ...]:
    in_shell = shlex.quote(value).removeprefix("'").removesuffix("'")
    in_json = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    in_url = quote(value.encode("utf-8", "surrogateescape"), safe="")
    return (value, *in_json, repr(value)[1:-1], in_shell, in_url)
