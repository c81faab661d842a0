"""The model and the pairs that every side of a comparison is given, from a seed.

    python -m benchmarks.workload FOLDER --shape small --profile short --pairs 48

writes `model/` (random weights), `adapter.safetensors` (the LoRA every side starts from) and `pairs.parquet` (TOKENS).
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from engine.preferences.pairs import TokenPair, TokenRow
from engine.preferences.schema import ROW_GROUP_ROWS, TOKENS, writer

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

EOS, FIRST_WORD = 2, 5  # ids below are special
LORA_RANK, LORA_ALPHA = 8, 16
BETA, LEARNING_RATE = 0.1, 1e-3  # a rate at which the adapter moves within the few steps that are timed
ADAM_BETAS, MAX_GRAD_NORM = (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Shape:
    """A Llama with untied embeddings.

    Attributes:
        pairs: how many a timed run takes unless told otherwise.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int = 16_000
    pairs: int = 48


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 32, 64, 2, 2, vocabulary=97, pairs=8),  # to try the harness itself
        Shape("small", 256, 688, 6, 4),
        Shape("768", 768, 2064, 4, 12, pairs=16),
        Shape("ctllm", 2048, 5504, 32, 16, vocabulary=125_824, pairs=512),
        Shape("7b", 4096, 11_008, 32, 32, vocabulary=32_000, pairs=64),
    )
}


@dataclass(frozen=True)
class Lengths:
    """A log-normal number of tokens, cut to [low, high]."""

    median: float
    spread: float
    low: int
    high: int

    def draw(self, random: np.random.Generator) -> int:
        """One length."""
        return int(min(self.high, max(self.low, random.lognormal(math.log(self.median), self.spread))))


@dataclass(frozen=True)
class Profile:
    """How long prompts and answers are; a prompt and its answer are cut to `max_length` together."""

    name: str
    prompt: Lengths
    answer: Lengths
    max_length: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("short", Lengths(60, 0.7, 8, 200), Lengths(60, 0.9, 4, 400), 256),
        Profile("long", Lengths(600, 0.15, 500, 760), Lengths(160, 0.3, 100, 250), 1_024),
    )
}


def make_pairs(count: int, profile: Profile, vocabulary: int, seed: int = 0) -> list[TokenPair]:
    """`count` pairs of random ids; a smaller count gives the first of the same pairs."""
    random = np.random.default_rng(seed)
    return [_pair(index, profile, vocabulary, random) for index in range(count)]


def _pair(index: int, profile: Profile, vocabulary: int, random: np.random.Generator) -> TokenPair:
    prompt = random.integers(FIRST_WORD, vocabulary, profile.prompt.draw(random), dtype=np.int32)
    room = profile.max_length - len(prompt)
    sides = []
    for _ in range(2):
        answer = random.integers(FIRST_WORD, vocabulary, profile.answer.draw(random), dtype=np.int32)
        ids = np.concatenate([prompt, [*answer, EOS][:room]]).astype(np.int32)
        sides.append(TokenRow(ids, np.arange(len(ids)) >= len(prompt)))
    return TokenPair(f"{index:016x}", "generated", sides[0], sides[1])


def write_pairs(path: Path, pairs: list[TokenPair]) -> None:
    """Writes the pairs as a TOKENS table, without their text."""
    with writer(path, TOKENS) as file:
        for begin in range(0, len(pairs), ROW_GROUP_ROWS):
            file.write_table(
                pa.Table.from_pylist([_row(pair) for pair in pairs[begin : begin + ROW_GROUP_ROWS]], TOKENS)
            )


def _row(pair: TokenPair) -> dict[str, Any]:
    blank = {field.name: "" if pa.types.is_string(field.type) else 0 for field in TOKENS}
    return blank | {
        "pair_id": pair.pair_id,
        "source": pair.source,
        "prompt_length": prompt_length(pair),
        "chosen_input_ids": pair.chosen.input_ids,
        "chosen_label_mask": pair.chosen.label_mask,
        "rejected_input_ids": pair.rejected.input_ids,
        "rejected_label_mask": pair.rejected.label_mask,
    }


def prompt_length(pair: TokenPair) -> int:
    """Ids before the first scored one."""
    return len(pair.chosen) - pair.chosen.scored_tokens


def lora_config() -> "LoraConfig":
    """The adapter of every side: all linear layers but the head, no dropout."""
    from peft import LoraConfig

    return LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def make_model(shape: Shape, dtype: "torch.dtype", device: str, seed: int = 0) -> "PeftModel":
    """A Llama of that shape with random weights under a fresh adapter."""
    import torch
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4_096,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    torch.manual_seed(seed)
    with torch.device(device), torch.no_grad():
        model = LlamaForCausalLM(config)
        model.lm_head.weight.mul_(5)  # predictions as spread as a trained model's, so that rounding shows
        adapted = get_peft_model(model.to(dtype), lora_config())
    assert adapted.peft_config
    return adapted


def write_model(folder: Path, model: "PeftModel") -> None:
    """Writes `model/` and `adapter.safetensors`; the model has no adapter afterwards."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = {name: value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(adapter, folder / "adapter.safetensors")
    model.unload().save_pretrained(folder / "model")


def main() -> None:
    """Writes one workload."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--profile", choices=PROFILES, default="short")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--vocabulary", type=int, help="instead of the shape's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights on disk")
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    shape = replace(shape, vocabulary=given.vocabulary or shape.vocabulary)
    given.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(given.folder / "pairs.parquet", make_pairs(given.pairs, PROFILES[given.profile], shape.vocabulary))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_model(given.folder, make_model(shape, getattr(torch, given.dtype), device))


if __name__ == "__main__":
    main()
