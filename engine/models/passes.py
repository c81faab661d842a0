"""How rows go through a model, and how many tokens of them at once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.models.forward import HEADS, Forward
from engine.models.layouts import LAYOUTS, Group, size
from engine.preferences.batching import by_tokens


@dataclass(frozen=True)
class Passes:
    """The micro-batches are a function of this and of the rows: bits differ with them, and a resumed run keeps them.

    Attributes:
        budget: tokens a micro-batch may take up; a group above it goes alone.
        pad_id: fills rows up where the layout has padding.
    """

    forward: Forward
    budget: int
    pad_id: int

    def split(self, groups: Mapping[int, Group]) -> list[list[int]]:
        """The groups' keys in micro-batches, longest first."""
        layout = self.forward.layout
        sizes = {key: size(group, layout) for key, group in groups.items()}
        return by_tokens(sizes, self.budget, rectangular=layout in ("shared", "padded"))

    def as_settled(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """It and what it was settled for, as JSON-like values, for an attempt that goes on from a checkpoint."""
        return {"asked": dict(asked), **asdict(self)}

    @classmethod
    def settled(cls, kept: object, asked: Mapping[str, Any]) -> "Passes | None":
        """What an earlier attempt kept; None when it is nothing of the kind, or when something else was asked for."""
        try:
            if kept["asked"] != asked:  # type: ignore[index]
                return None
            forward = Forward(**kept["forward"])  # type: ignore[index]
            found = cls(forward, kept["budget"], kept["pad_id"])  # type: ignore[index]
        except (TypeError, KeyError):
            return None
        whole = all(type(number) is int for number in (found.budget, found.pad_id))
        known = forward.layout in (*LAYOUTS, "single") and forward.head in tuple(HEADS)  # a damaged one may not hash
        return found if whole and known else None
