"""The Python code that models and tokenizers ship: whether it may run, and what is said when it may not.

It may run where the user named the repository or folder. A repository must also be pinned to a commit, since its
branches can come to mean other code; a folder's code is part of every key that depends on it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import ConfigError, ModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASKED_FOR = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")  # what is ever loaded; others are left alone


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit: 40 hexadecimal digits in lower case."""
    return _COMMIT.fullmatch(revision) is not None


def not_pinned(name: str, revision: str, commit: str = "", key: str = "revision") -> ConfigError:
    """The error for a repository whose code is allowed under a revision that can come to mean other code.

    Args:
        commit: what the revision was last known to stand for.
        key: the one of `[model]` that holds its revision.
    """
    now = f", which last was commit {commit}" if commit else ""
    line = f'model.{key} = "{commit}"' if commit else f"model.{key} to the commit that you read"
    return ConfigError(
        f"the code of `{name}` is allowed to run, and nothing says which version of it",
        expected=f"model.{key}: a full commit, 40 hexadecimal digits",
        found=f'model.{key} = "{revision}"{now}',
        fix=f"read the code at https://huggingface.co/{name}/commits/{commit or revision}; if you trust it, set {line}",
    )


def not_allowed(name: str, revision: str, what: str) -> ModelError:
    """The error for code that was not allowed; for a repository it names the commit to read and to set."""
    read, pin = "that code", ""
    if is_commit(revision):
        read = f"that code at https://huggingface.co/{name}/tree/{revision}"
        pin = f' and model.revision = "{revision}" (model.policy_revision where it is the policy)'
    return ModelError(
        f"the {what} ships its own Python code, and it may not run",
        where=name,
        fix=f'read {read}; if you trust it, set model.allow_code = "{name}"{pin}',
    )


def refuse_foreign(settings: Mapping[str, Any], name: str, what: str) -> None:
    """Refuses a config whose classes are taken from another repository than its own: nobody allowed or pinned that one.

    Args:
        settings: the content of config.json or tokenizer_config.json; the configs in it are looked at as well.

    Raises:
        ModelError: naming the other repository.
    """
    for reference in [*_references(settings.get("auto_map")), *_inner_references(settings)]:
        repository, mark, _ = reference.rpartition("--")
        if mark and repository != name:
            raise ModelError(
                f"the {what} runs Python code of another repository than its own",
                expected=f"code that lies in `{name}`",
                found=reference,
                where=name,
                fix="read that code; if you trust it, copy it into a folder with the model and name that folder",
            )


def entries(settings: object) -> Iterator[tuple[str, Any]]:
    """Every key in a JSON value with what it holds, however deep it lies; what holds others comes before them."""
    if isinstance(settings, Mapping):
        yield from settings.items()
    for inner in _inner(settings):
        yield from entries(inner)


def _inner(settings: object) -> Iterator[object]:
    if isinstance(settings, Mapping):
        yield from settings.values()
    elif isinstance(settings, list | tuple):
        yield from settings


def _inner_references(settings: Mapping[str, Any]) -> Iterator[str]:
    """The classes that the configs inside a config name: which of them is asked for, its model decides."""
    for inner in _inner(settings):
        for key, value in entries(inner):
            if key == "auto_map":
                yield from _references(list(value.values()) if isinstance(value, Mapping) else value)


def _references(auto_map: object) -> Iterator[str]:
    """The classes named, `module.Class` or `owner/name--module.Class`; a tokenizer's come in pairs."""
    if isinstance(auto_map, Mapping):
        auto_map = [auto_map.get(kind) for kind in _ASKED_FOR]
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, list | tuple):
        for each in auto_map:
            yield from _references(each)
