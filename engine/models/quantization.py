"""Frozen weights in 8 or 4 bits, through bitsandbytes on CUDA.

Quantised are the linear layers of the body; embedding, norms and head keep the dtype asked for. Nothing is cast to
float32 afterwards, as peft's preparation would: it doubles what embedding and head take, and the reference would have
been scored by another model than the one that trains. Freezing is what the adapter does anyway, and layers that are
computed again need no gradient at their inputs (`layers.py`).

The adapter on them is float32 and multiplied as such by peft, its products added in the dtype of the rest. Its AdamW is
the plain one: an adapter of 40M parameters, rank 16 on 7B, has 0.3 GB of moments, so 8-bit or paged ones save nothing
that matters. DoRA runs on 4 and 8 bits, too, but unpacks each weight once more a step to measure it.
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from engine.errors import ConfigError

QUANTIZATIONS = ("none", "8bit", "4bit")


def check_quantization(quantization: str, dtype: str, device: torch.device | None = None) -> None:
    """Refuses what cannot run, before any weight is read.

    Args:
        quantization: one of `QUANTIZATIONS`.
        dtype: of what is not quantised, and of the products.
        device: where the model is to run, when that is known.

    Raises:
        ConfigError: there is no CUDA or it is not what runs, bitsandbytes is missing, or 8-bit weights are to be
            multiplied in float32.
    """
    if quantization == "none":
        return
    wanted = f"{quantization} weights"
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        raise ConfigError(
            f"{wanted} need a CUDA device",
            found="torch sees none" if not torch.cuda.is_available() else f"runtime.device is {device}",
            fix='set reference.quantization = "none"; reference.dtype = "bfloat16" halves the weights on any device',
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{wanted} need the package bitsandbytes", fix="pip install bitsandbytes")
    if quantization == "8bit" and dtype == "float32":  # LLM.int8() casts what it multiplies to half precision
        raise ConfigError(
            "products with 8-bit weights are never float32",
            expected='dtype = "bfloat16" or "float16"',
            found='dtype = "float32"',
            fix='set reference.dtype = "bfloat16"',
        )


def bits_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers loads weights with; None for "none".

    8bit: LLM.int8() (Dettmers et al. 2022). 4bit: NF4, its constants quantised too (Dettmers et al. 2023, section 3).
    """
    if quantization == "none":
        return None
    if quantization == "8bit":
        # It says at every product that bfloat16 is cast to float16 for it.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantized(model: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """A whole model on the CPU, its weights quantised on their way to CUDA; the model itself for "none".

    The numbers are those of the same model saved and loaded quantised.
    """
    how = bits_config(quantization, model.dtype)
    if how is None:
        return model
    given: dict[str, Any] = {"config": model.config, "state_dict": model.state_dict(), "dtype": model.dtype}
    made: PreTrainedModel = type(model).from_pretrained(None, quantization_config=how, **given)
    return made.eval()
