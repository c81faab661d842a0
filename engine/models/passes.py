"""How rows go through a model, and how many tokens of them at once."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.files import write_atomically
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

    def write(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Keeps it, and what it was settled for, for an attempt that goes on from a checkpoint."""
        write_atomically(path, json.dumps({"asked": dict(asked), **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, asked: Mapping[str, Any]) -> "Passes | None":
        """What an earlier attempt kept; None when that cannot be read, or when something else was asked for then."""
        try:
            kept = json.loads(path.read_text("utf-8"))
            if kept["asked"] != asked:
                return None
            forward = Forward(**kept["forward"])
            found = cls(forward, kept["budget"], kept["pad_id"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = all(type(number) is int for number in (found.budget, found.pad_id))
        known = forward.layout in (*LAYOUTS, "single") and forward.head in HEADS
        return found if whole and known else None
