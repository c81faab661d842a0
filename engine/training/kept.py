"""The weights that a run would fall back to, on the disk: one set, and which step it is of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.errors import StoreError
from engine.files import sync, write_atomically
from engine.fingerprint import file_digest

_NOTE = "kept.json"


class KeptWeights:
    """The trained weights of one step, below a folder that is made when it is needed.

    A note names the file that holds them, and its digest, and is replaced as a whole: a kill leaves the old set or the
    new one.
    """

    def __init__(self, folder: Path) -> None:
        """Touches nothing."""
        self._folder = folder

    @property
    def step(self) -> int | None:
        """The step whose weights are kept; None when there are none, or not as they were written."""
        note = self._note()
        try:
            whole = note is not None and file_digest(self._folder / note["file"]) == note["sha256"]
        except OSError:
            return None
        return note["step"] if note and whole else None

    @property
    def numbers(self) -> dict[str, float]:
        """That step's numbers; of the untrained weights there are none."""
        note = self._note()
        return note["numbers"] if note else {}

    def keep(self, step: int, numbers: Mapping[str, float], weights: Mapping[str, torch.Tensor]) -> None:
        """Keeps these, and only then lets go of those before.

        Raises:
            StoreError: they cannot be written; those before are still there.
        """
        new = self._folder / ".new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({name: value.detach().contiguous() for name, value in weights.items()}, new)
            sync(new)
            digest = file_digest(new)
            file = new.rename(self._folder / f"{digest}.safetensors")  # no other weights are ever written over
            note = {"step": step, "numbers": dict(numbers), "file": file.name, "sha256": digest}
            write_atomically(self._folder / _NOTE, json.dumps(note))
            for other in self._folder.glob("*.safetensors"):
                if other != file:
                    other.unlink()
        except (OSError, SafetensorError) as error:
            raise StoreError(
                "the weights to fall back to cannot be written",
                found=str(error),
                where=str(self._folder),
                fix="free the disk or its permissions, then run again: it goes on from the last checkpoint",
            ) from None

    def put_back(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Copies what is kept into the parameters of the same names.

        Raises:
            StoreError: nothing is kept, or not as it was written; no parameter is touched then.
        """
        note = self._note()
        try:
            if note is None:
                raise ValueError("there is no note of them")
            file = self._folder / note["file"]
            if file_digest(file) != note["sha256"]:
                raise ValueError(f"{file.name} is not as it was written")
            weights = load_file(file)
            if weights.keys() != parameters.keys():
                raise ValueError(f"{file.name} is of another adapter")
        except (OSError, ValueError, SafetensorError) as error:
            raise self.lost(str(error)) from None
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(weights[name])

    def lost(self, found: str) -> StoreError:
        """The error to raise where they are wanted and `found` is all there is."""
        return StoreError(
            "the weights to fall back to are lost",
            found=found,
            where=str(self._folder),
            fix="train anew: dpo run --only train --force",
        )

    def _note(self) -> dict[str, Any] | None:
        try:
            note = json.loads((self._folder / _NOTE).read_text("utf-8"))
            sound = type(note["step"]) is int and isinstance(note["numbers"], dict) and isinstance(note["file"], str)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return note if sound and "sha256" in note else None
