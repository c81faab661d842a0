"""A configuration from Python values: a profile, and what is put on top of it."""

import os
from collections.abc import Iterator, Mapping

from engine.config import Settings, load
from engine.errors import ConfigError
from engine.toml_text import assignment
from tasks import SHARED, STAGES

Overrides = Mapping[str, object]


def settings_of(profile: str, overrides: Overrides | None) -> Settings:
    """The configuration of a profile (a name in configs/, or the path of a TOML file) with values on top.

    Args:
        overrides: dotted key and value, as `{"train.beta": 0.2}`.

    Raises:
        ConfigError: no such profile, an unknown key, or an impossible value.
    """
    return load(profile, list(_texts(overrides or {})), STAGES, SHARED)


def plain(value: object) -> object:
    """A value as JSON and TOML know it: paths as texts, numbers and arrays of numpy as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    own = getattr(value, "tolist", None)
    return own() if callable(own) else value


def _texts(overrides: Overrides) -> Iterator[str]:
    """As `key=value`, which is how a run's record keeps them, so that `dpo run --set` can say the same."""
    for key, value in overrides.items():
        try:
            yield f"{key}={assignment('value', plain(value)).removeprefix('value = ')}"
        except TypeError as error:
            raise ConfigError(
                f"`{key}` cannot be {value!r:.80}",
                expected="a text, a number, True or False, a path, or a list or dict of such",
                found=str(error),
                fix="leave the key out for its default" if value is None else "",
            ) from None
