"""Which device the work runs on, and the accelerator that drives it."""

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from engine.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from transformers import PreTrainedModel


def pick_device(wanted: str, threads: int = 0, *, deterministic: bool = False) -> torch.device:
    """The device for "auto" (a GPU when there is one), "cpu" or "cuda"; sets torch's thread count when `threads` > 0.

    Args:
        deterministic: the same numbers to the bit each time, at some cost on a GPU; the CPU's are so anyway. Call it
            before anything else touches the GPU. An operation that cannot do so fails.

    Raises:
        ConfigError: "cuda" is wanted and there is none.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when it is first used
    torch.use_deterministic_algorithms(deterministic)
    if threads:
        torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device is cuda, and torch sees no CUDA device",
            found=f"torch {torch.__version__}",
            fix='set runtime.device = "auto", or install the CUDA build of torch',
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def what_bits_depend_on(device: torch.device) -> dict[str, Any]:
    """What the same work must share to give the same numbers to the bit, besides its config; JSON-like values."""
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def placed(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    """The model on its device. Quantised weights stay where they were made, on the CUDA device."""
    return model if getattr(model, "quantization_method", None) else model.to(device)


def accelerator_on(device: torch.device, trackers: "Sequence[GeneralTracker]" = ()) -> Accelerator:
    """An accelerator that tells these trackers, and does what it is told here.

    Left to itself, accelerate takes precision, compiler and accumulation from environment variables: the same config
    would then train other weights.
    """
    # accelerate asks for a property that transformers is about to rename.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(trackers) or None,
    )
