"""Versions: sealed promote artifacts, which say what they were made of and what it takes to have them serve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.artifact import HANDED_DOWN, Artifact
from engine.errors import StoreError
from engine.fingerprint import digest
from engine.promotion.pointer import STAGE
from engine.store import Store

_USED = ("tokenize", "sft")  # what the adapter of a version is of no use without


def candidate_of(inputs: Mapping[str, Artifact], given: Mapping[str, Any]) -> str:
    """Identity of a model: of the adapter that `train` made and the policy it belongs on, 16 hexadecimal digits.

    Reads no file of theirs, so that kept manifests are enough.

    Args:
        inputs: sealed artifacts by stage, `train` and, unless a policy is given, `sft` among them.
        given: what `given_policy` says of the policy that was given; empty where `sft` made it.
    """
    policy: Any = inputs["sft"].digest if "sft" in inputs else dict(given)
    return digest({"adapter": inputs["train"].digest, "policy": policy})[:16]


class Versions:
    """The versions below one root of artifacts."""

    def __init__(self, root: Path) -> None:
        self._store = Store(root)

    def find(self, version: str) -> Artifact:
        """A version, sealed; or what is left of it, its manifest. Raises StoreError where there is neither."""
        found = self._store.find(STAGE, version) or self._store.pruned(STAGE, version)
        if found is None:
            raise StoreError(
                f"there is no version {version}", where=str(self.place(version)), fix="dpo promoted lists them"
            )
        return found

    def place(self, version: str) -> Path:
        """Its folder, there or not."""
        return self._store.root / STAGE / version

    def record(self, version: str) -> Mapping[str, Any]:
        """What a version says of itself. Raises StoreError."""
        try:
            told = self.find(version).handed_down
            if not isinstance(told, dict) or not {"candidate", "against", "stages"} <= told.keys():
                raise ValueError("it does not say which model it is")
            return told
        except (OSError, ValueError) as error:
            where = str(self.place(version) / HANDED_DOWN)
            raise StoreError(f"version {version} cannot be read", found=str(error), where=where) from None

    def made_of(self, version: str) -> list[tuple[str, str]]:
        """Stage and key of what a version was made of, as far as it can still say so."""
        try:
            return [(str(stage), str(key)) for stage, key in self.record(version)["stages"].items()]
        except StoreError:
            return []

    def problems(self, version: str) -> list[str]:
        """What is gone or broken of a version, and of what was sealed for it, in words; empty if nothing is."""
        wanted = [(STAGE, version), *(part for part in self.made_of(version) if part[0] in _USED)]
        return [problem for stage, key in wanted for problem in self._problems(stage, key)]

    def _problems(self, stage: str, key: str) -> list[str]:
        artifact = self._store.find(stage, key)
        if artifact is None:
            return [f"{stage}/{key} is gone"]
        return [f"{stage}/{key}: {problem}" for problem in self._store.verify(artifact)]
