"""Training checkpoints: trainable weights, optimizer, schedule, RNG streams, and position. No pickle.

A checkpoint is a folder `step-<n>` that appears by one rename, so the newest one there is whole, as far as the disk
keeps what it was told to keep. One that cannot be read is passed over for the one before it.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import StoreError
from engine.files import sync

_log = logging.getLogger("dpo")


def rng_streams() -> dict[str, Tensor]:
    """The states of the random streams as they are now: the CPU's, and every CUDA device's."""
    streams = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        streams |= {f"rng.cuda.{index:03d}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return streams


@dataclass(frozen=True)
class TrainingState:
    """Where a run is between two steps. The batch plan gives the rows, so nothing else is position.

    Attributes:
        step: the optimizer steps done.
        untold: the numbers of the last step as long as its listeners have not heard of it to the end.
        rng: the random streams at that point; as they are now unless given.
    """

    step: int = 0
    untold: Mapping[str, float] = field(default_factory=dict)
    rng: Mapping[str, Tensor] = field(default_factory=rng_streams, compare=False)


@dataclass(frozen=True)
class Moving:
    """What a step changes: the trainable parameters by name, and what decides how they move."""

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class _Saved:
    """A checkpoint as read."""

    state: TrainingState
    weights: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run, below one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, state: TrainingState, moving: Moving) -> Path:
        """Writes one checkpoint and removes the oldest beyond those kept.

        Raises:
            StoreError: it cannot be written.
        """
        target = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{target.name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary, state, moving)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                "a checkpoint cannot be written",
                found=str(error),
                where=str(target),
                fix="free the disk or its permissions, then run again: the checkpoint before this one is kept",
            ) from None
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def restore(self, moving: Moving) -> TrainingState | None:
        """Puts the newest whole checkpoint back into the given objects and RNG streams; None when there is none.

        Raises:
            StoreError: the checkpoint is of a model with other trainable weights.
        """
        for folder in reversed(self._all()):
            try:
                saved = _read(folder)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                _log.warning("the checkpoint %s cannot be read and is passed over: %s", folder, error)
                continue
            _check_fit(saved.weights, moving.parameters, folder)
            _put_back(saved, moving)
            return saved.state
        return None

    def remove(self) -> None:
        """Deletes all of them: the run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _write(folder: Path, state: TrainingState, moving: Moving) -> None:
    weights = {name: value.detach().contiguous() for name, value in moving.parameters.items()}
    save_file(weights, folder / "weights.safetensors")
    moments, groups = _flatten(moving.optimizer.state_dict())
    save_file(moments | dict(state.rng), folder / "state.safetensors")
    content = {
        "state": {"step": state.step, "untold": dict(state.untold)},
        "groups": groups,
        "schedule": _plain(moving.schedule.state_dict()),
        "scaler": moving.scaler.state_dict(),
    }
    (folder / "state.json").write_text(json.dumps(content), "utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)


def _read(folder: Path) -> _Saved:
    content = json.loads((folder / "state.json").read_text("utf-8"))
    tensors = load_file(folder / "state.safetensors")
    rng = {"rng.cpu": tensors["rng.cpu"]} | {name: tensors[name] for name in tensors if name.startswith("rng.cuda.")}
    return _Saved(
        TrainingState(**content["state"], rng=rng),
        load_file(folder / "weights.safetensors"),
        _unflatten(tensors, content["groups"]),
        content["schedule"],
        content["scaler"],
    )


def _check_fit(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor], folder: Path) -> None:
    ours, theirs = ({name: value.shape for name, value in each.items()} for each in (parameters, weights))
    if ours != theirs:
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        raise StoreError(
            "a checkpoint does not fit the model",
            expected=f"{differing[0]}: {_shape(ours.get(differing[0]))}",
            found=_shape(theirs.get(differing[0])),
            where=str(folder),
            fix="run the stage again with --force",
        )


def _shape(shape: torch.Size | None) -> str:
    return "no such weight" if shape is None else f"shape {tuple(shape)}"


def _put_back(saved: _Saved, moving: Moving) -> None:
    with torch.no_grad():
        for name, value in moving.parameters.items():
            value.copy_(saved.weights[name])
    moving.optimizer.load_state_dict(saved.optimizer)
    moving.schedule.load_state_dict(saved.schedule)
    moving.scaler.load_state_dict(saved.scaler)
    _restore_rng(saved.state.rng)


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    moments = {
        f"optimizer.{index}.{name}": value.detach().contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return moments, state["param_groups"]


def _unflatten(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        area, _, rest = name.partition(".")
        if area == "optimizer":
            index, _, moment = rest.partition(".")
            state.setdefault(int(index), {})[moment] = value
    return {"state": state, "param_groups": groups}


def _restore_rng(streams: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(streams["rng.cpu"])
    cuda = [streams[name] for name in sorted(streams) if name.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | list | str | bool)}
