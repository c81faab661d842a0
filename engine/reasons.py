"""Why a stage has to run: the difference between what it would be made of and the nearest thing that was made."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, Self

from engine.artifact import Artifact
from engine.attempts import Attempt
from engine.fingerprint import differences

_SHOWN_CHARACTERS, _BEFORE_CHARACTERS = 60, 15
_OPTIONAL: dict[str, Any] = {"runtime": {}, "borrowed": {}}  # stand only in the payloads that they bear meaning for
_TAKES_A_PLACE = re.compile(r"borrowed\.[^.]+")


@dataclass(frozen=True)
class Change:
    """One leaf in which two payloads differ; None where it is missing."""

    name: str
    old: object
    new: object

    def said(self, stage: str) -> str:
        """The change on one line, long values cut; of long tables and lists only the entries that differ."""
        area, _, rest = self.name.partition(".")
        if area == "inputs":
            return f"input {rest} {_became(self.old, self.new, 'read')}"
        if area == "sources":
            return f"{rest} {_became(self.old, self.new, 'named')}"
        if area == "borrowed":
            return _went(rest, self.old, self.new)
        if area == "version":
            return f"the code of {stage} went from version {self.old} to {self.new}"
        return _went(f"{stage}.{rest}", self.old, self.new)


@dataclass(frozen=True)
class Nearest:
    """The most similar of what was made, or begun, of a stage.

    Attributes:
        changes: every difference from it to what is wanted now; empty when it is of the same.
    """

    made: Artifact | Attempt
    changes: list[Change]

    @classmethod
    def to(cls, payload: Mapping[str, Any], made: Sequence[Artifact | Attempt]) -> Self | None:
        """The nearest to a payload; of equally near ones the first. None when nothing was made."""
        found = [cls(each, _changes(each, payload)) for each in made]
        return min(found, key=lambda each: len(each.changes), default=None)

    @property
    def kind(self) -> Literal["sealed", "pruned", "attempt"]:
        """Whether it is whole, only a manifest, or was interrupted."""
        if isinstance(self.made, Attempt):
            return "attempt"
        return "pruned" if self.made.pruned else "sealed"

    @property
    def made_at(self) -> str:
        """When it was sealed, or begun; empty where that is not known."""
        if isinstance(self.made, Attempt):
            return self.made.began_at
        return str(self.made.manifest.get("sealed_at", ""))

    def said(self) -> str:
        """The differences on one line, each cut to a length for a table."""
        changes = "; ".join(change.said(self.made.stage) for change in self.changes)
        if isinstance(self.made, Attempt):
            return f"{changes} (an interrupted attempt from before that is left at {self.made.path}; this starts anew)"
        gone = "only its manifest is kept" if self.made.pruned else "its artifact is gone"
        return changes or gone


def why_run(payload: Mapping[str, Any], made: Sequence[Artifact | Attempt]) -> str:
    """One line that says what differs from the nearest thing that was made of the stage."""
    found = Nearest.to(payload, made)
    return found.said() if found else "never made"


def _changes(made: Artifact | Attempt, payload: Mapping[str, Any]) -> list[Change]:
    old = made.payload if isinstance(made, Attempt) else made.manifest["payload"]
    found = [Change(*difference) for difference in differences(_OPTIONAL | dict(old), _OPTIONAL | dict(payload))]
    # A config that is borrowed as a whole, or no longer, stands for an input that is new or no longer read, which says
    # it.
    return [change for change in found if not _TAKES_A_PLACE.fullmatch(change.name)]


def _became(old: object, new: object, used: str) -> str:
    if old is None:
        return "is new"
    return f"is no longer {used}" if new is None else "has other content"


def _went(name: str, old: object, new: object) -> str:
    """From what a value went to what, with whatever differs in sight."""
    tables = _numbered(old), _numbered(new)
    if tables[0] and tables[1] and max(len(str(old)), len(str(new))) > _SHOWN_CHARACTERS:
        return "; ".join(_went(*difference) for difference in differences(*tables, name))
    return f"{name}: {_shown(old, new)} → {_shown(new, old)}"


def _numbered(value: object) -> Mapping[str, Any] | None:
    """A table, or a list as one, numbered as in the keys that errors name."""
    if isinstance(value, list | tuple):
        return {str(place): item for place, item in enumerate(value)}
    return value if isinstance(value, Mapping) else None


def _shown(value: object, other: object) -> str:
    """A value, cut to a length: from its beginning, or from shortly before it differs from the other one."""
    if value is None:
        return "nothing"
    text = str(value)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, str(other), strict=False)))
    if len(text) > _SHOWN_CHARACTERS and same > _SHOWN_CHARACTERS // 2:
        text = "…" + text[same - _BEFORE_CHARACTERS :]
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
