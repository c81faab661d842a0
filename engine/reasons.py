"""Why a stage has to run: the difference between what it would be made of and the nearest artifact there is."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.fingerprint import differences
from engine.store import Artifact

_SHOWN_CHARACTERS = 60
_RUNTIME: dict[str, Any] = {"runtime": {}}  # stands only in the payloads that it bears meaning for


def why_run(stage: str, payload: Mapping[str, Any], sealed: Sequence[Artifact]) -> str:
    """One line that says what differs from the most similar of the stage's sealed artifacts, the newest first."""
    changes = [differences(_RUNTIME | artifact.manifest["payload"], _RUNTIME | dict(payload)) for artifact in sealed]
    if not changes:
        return "never made"
    return "; ".join(_change(stage, *change) for change in min(changes, key=len)) or "its artifact is gone"


def _change(stage: str, name: str, old: object, new: object) -> str:
    area, _, rest = name.partition(".")
    if area == "inputs":
        return f"input {rest} {_became(old, new)}"
    if area == "sources":
        return f"{rest} {_became(old, new)}"
    if area == "version":
        return f"the code of {stage} went from version {old} to {new}"
    return f"{stage}.{rest}: {_shown(old)} → {_shown(new)}"


def _became(old: object, new: object) -> str:
    if old is None:
        return "is new"
    return "is gone" if new is None else "has other content"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
