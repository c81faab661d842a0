"""Why a stage has to run: the difference between what it would be made of and the nearest thing that was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from engine.artifact import Artifact
from engine.attempts import Attempt
from engine.fingerprint import differences

_SHOWN_CHARACTERS = 60
_RUNTIME: dict[str, Any] = {"runtime": {}}  # stands only in the payloads that it bears meaning for


@dataclass(frozen=True)
class Change:
    """One leaf in which two payloads differ; None where it is missing."""

    name: str
    old: object
    new: object

    def said(self, stage: str) -> str:
        """The change on one line, long values cut."""
        area, _, rest = self.name.partition(".")
        if area == "inputs":
            return f"input {rest} {_became(self.old, self.new)}"
        if area == "sources":
            return f"{rest} {_became(self.old, self.new)}"
        if area == "version":
            return f"the code of {stage} went from version {self.old} to {self.new}"
        return f"{stage}.{rest}: {_shown(self.old)} → {_shown(self.new)}"


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
    return [Change(*difference) for difference in differences(_RUNTIME | dict(old), _RUNTIME | dict(payload))]


def _became(old: object, new: object) -> str:
    if old is None:
        return "is new"
    return "is gone" if new is None else "has other content"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
