"""What the way a model was trained is called: by the paper of its loss where that takes no reference, else DPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.trained_loss import is_reference_free


@dataclass(frozen=True)
class Method:
    """A name, what it stands for, and the paper."""

    name: str
    words: str
    paper: str


_DPO = Method("DPO", "direct preference optimization", "https://arxiv.org/abs/2305.18290")
_REFERENCE_FREE = {
    "simpo": Method("SimPO", "simple preference optimization", "https://arxiv.org/abs/2405.14734"),
    "orpo": Method("ORPO", "odds ratio preference optimization", "https://arxiv.org/abs/2403.07691"),
}


def method_of(loss: Mapping[str, Any]) -> Method:
    """The method of a training that handed down this loss; what else than DPO's own it trains is told beside it."""
    names = [term["name"] for term in loss["loss"]] if is_reference_free(loss) else []
    return next((_REFERENCE_FREE[name] for name in names if name in _REFERENCE_FREE), _DPO)
