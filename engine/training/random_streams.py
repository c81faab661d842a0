"""Every random stream that training may draw from. A base's own code may use Python's or numpy's instead of torch's."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CPU, _CUDA = "rng.cpu", "rng.cuda."


def seed_streams(seed: int) -> None:
    """Starts all of them: what was drawn while a model was loaded and tried then decides nothing."""
    torch.manual_seed(seed)  # of every CUDA device as well
    random.seed(seed)
    np.random.seed(seed % 2**32)


@dataclass(frozen=True)
class RandomStreams:
    """The states of the streams at one point.

    Attributes:
        torch: the CPU's and every CUDA device's, (bytes,) uint8 each, by name.
        python, numpy: as `random.getstate()` and `numpy.random.get_state()` give them, as JSON-like values.
    """

    torch: Mapping[str, Tensor]
    python: list[Any]
    numpy: list[Any]

    @classmethod
    def now(cls) -> "RandomStreams":
        """As they are; nothing is drawn."""
        streams = {_CPU: torch.get_rng_state()}
        if torch.cuda.is_available():
            found = enumerate(torch.cuda.get_rng_state_all())
            streams |= {f"{_CUDA}{index:03d}": state for index, state in found}
        version, words, gauss = random.getstate()
        name, keys, *rest = np.random.get_state()
        return cls(streams, [version, list(words), gauss], [name, np.asarray(keys).tolist(), *rest])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> "RandomStreams":
        """From what `torch` and `others` held; further tensors are let be. Raises KeyError, TypeError."""
        names = [_CPU, *(name for name in tensors if name.startswith(_CUDA))]
        return cls({name: tensors[name] for name in names}, list(others["python"]), list(others["numpy"]))

    @property
    def others(self) -> dict[str, Any]:
        """The streams that are no tensors, as JSON-like values."""
        return {"python": self.python, "numpy": self.numpy}

    def put_back(self) -> None:
        """Lets all streams go on from here. Those of CUDA stay as they are where there are not as many devices."""
        torch.set_rng_state(self.torch[_CPU])
        cuda = [self.torch[name] for name in sorted(self.torch) if name.startswith(_CUDA)]
        if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
        version, words, gauss = self.python
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = self.numpy
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
