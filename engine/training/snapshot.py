"""One checkpoint as a folder of files: tensors as safetensors, the rest as JSON, and no pickle anywhere.

`digests.json` is written last and holds the SHA-256 of every other file. A folder that a kill, a full disk or a flipped
bit left in any other state than it was written in is told by it, before any of its tensors is used.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.files import sync
from engine.fingerprint import file_digest
from engine.training.random_streams import RandomStreams
from engine.training.state import ClosingSums, Moving, TrainingState

WEIGHTS, TENSORS, CONTENT, DIGESTS = "weights.safetensors", "state.safetensors", "state.json", "digests.json"
# Not every OSError: a checkpoint behind a disk or a permission that fails for now is not to be taken for a broken one.
UNREADABLE = (
    FileNotFoundError, NotADirectoryError, IsADirectoryError,
    ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Label:
    """What a checkpoint says of the run it is of, as JSON-like values.

    Attributes:
        identity: what the run is; a run that is anything else cannot go on from here.
        settled: what was settled before its first step, which a run that goes on keeps.
        environment: what the bits of its numbers depend on besides.
    """

    identity: Mapping[str, Any] = field(default_factory=dict)
    settled: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, state: TrainingState, moving: Moving, label: Label) -> None:
    """Fills an empty folder; every file is on the disk when it returns. Raises OSError, SafetensorError."""
    weights = {name: value.detach().contiguous() for name, value in moving.parameters.items()}
    save_file(weights, folder / WEIGHTS)
    moments, groups = _flatten(moving.optimizer.state_dict())
    save_file(moments | dict(state.rng.torch), folder / TENSORS)
    content = {
        "label": asdict(label),
        "state": {"step": state.step, "untold": dict(state.untold), "closing": asdict(state.closing)},
        "random": state.rng.others,
        "groups": groups,
        "schedule": _plain(moving.schedule.state_dict()),
        "scaler": moving.scaler.state_dict(),
    }
    (folder / CONTENT).write_text(json.dumps(content), "utf-8")
    names = (WEIGHTS, TENSORS, CONTENT)
    for name in names:
        sync(folder / name)
    (folder / DIGESTS).write_text(json.dumps({name: file_digest(folder / name) for name in names}), "utf-8")
    sync(folder / DIGESTS)
    sync(folder)


def read_label(folder: Path) -> Label:
    """What a checkpoint says of its run, once every byte of it is found as it was written.

    Raises:
        One of UNREADABLE: a file is gone, or is not what was written.
        OSError: the disk refuses.
    """
    digests = json.loads((folder / DIGESTS).read_text("utf-8"))
    for name in (WEIGHTS, TENSORS, CONTENT):
        if file_digest(folder / name) != digests[name]:
            raise ValueError(f"{name} is not as it was written")
    return Label(**json.loads((folder / CONTENT).read_text("utf-8"))["label"])


def read_into(folder: Path, moving: Moving) -> TrainingState:
    """Puts a checkpoint whose label was read back into the given objects and the random streams.

    Raises:
        One of UNREADABLE: it does not fit them, and nothing was touched.
        OSError: the disk refuses.
    """
    content = json.loads((folder / CONTENT).read_text("utf-8"))
    weights, tensors = load_file(folder / WEIGHTS), load_file(folder / TENSORS)
    _check_fit(weights, moving.parameters)
    position = content["state"]
    rng = RandomStreams.of(tensors, content["random"])
    state = TrainingState(position["step"], position["untold"], ClosingSums(**position["closing"]), rng)
    moving.scaler.load_state_dict(content["scaler"])
    moving.optimizer.load_state_dict(_unflatten(tensors, content["groups"]))
    moving.schedule.load_state_dict(content["schedule"])
    with torch.no_grad():
        for name, value in moving.parameters.items():
            value.copy_(weights[name])
    rng.put_back()
    return state


def _check_fit(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    ours, theirs = ({name: _kind(value) for name, value in each.items()} for each in (parameters, weights))
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise ValueError(f"the model's {name} is {ours.get(name, 'none')}, that of the checkpoint {theirs.get(name)}")


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


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


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | list | str | bool)}
