"""Under what a run was made: the keys in force, the command that makes it again, the versions it ran on."""

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.keys import leaves
from engine.reports.markdown import code, escape, table
from engine.selection import Selection
from engine.trained_loss import is_reference_free

if TYPE_CHECKING:
    from engine.runs import RunRecord


# What needs a reference to be seen.
_DISPLACEMENT = ("train.monitor.displacement", "train.monitor.displacement_steps")


def changes(record: "RunRecord") -> str:
    """The profile, what was set on top of it, and a table of the keys that do not have their defaults; in markdown."""
    profile = f"Profile {code(record.profile)}"
    if record.overrides:
        profile += ", with " + ", ".join(code(override) for override in record.overrides)
    rows = [[code(key), _value(value)] for key, value in record.changed.items()]
    changed = table(["key", "value"], rows) or "Everything has its default."
    return f"{profile}. What differs from the defaults:\n\n{changed}"


def every_key(record: "RunRecord") -> str:
    """A table in markdown of every key in force; those of displacement are not where nothing is held against it."""
    train = record.config.get("train")
    idle = _DISPLACEMENT if isinstance(train, Mapping) and is_reference_free(train) else ()
    rows = [[code(key), _value(value)] for key, value in leaves(record.config) if key not in ("profile", *idle)]
    return table(["key", "value"], rows)


def command(record: "RunRecord") -> str:
    """The command, to copy into a shell, that makes the same again; as plain text."""
    named = {name: value for name, value in record.selection.items() if name in Selection.__dataclass_fields__}
    words = ["dpo", "run", "--profile", record.profile, *Selection(**named).arguments()]
    return shlex.join([*words, *(word for override in record.overrides for word in ("--set", override))])


def versions(record: "RunRecord") -> str:
    """A table in markdown of what the run ran on; nothing where that was not recorded."""
    return table(["", "version"], [[escape(name), escape(version)] for name, version in record.environment.items()])


def _value(value: object) -> str:
    return code(json.dumps(value, ensure_ascii=False))
