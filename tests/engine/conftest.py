"""Small random models and pairs for the tests of the numeric side."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engine.preferences.pairs import TokenPair, TokenRow

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

VOCABULARY, EOS = 50, 2


def token_row(prompt: Any, response: Any) -> TokenRow:
    ids = np.array([*prompt, *response], dtype=np.int32)
    return TokenRow(ids, np.arange(len(ids)) >= len(prompt))


@pytest.fixture(scope="session")
def make_row() -> Callable[..., TokenRow]:
    """A row of prompt ids, unscored, and response ids, scored."""
    return token_row


@pytest.fixture(scope="session")
def make_llama() -> "Callable[..., LlamaForCausalLM]":
    """A seeded Llama in eval mode whose predictions are far from uniform; keyword arguments are its config's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
        }  # fmt: skip
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(sizes | overrides))).eval()

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., list[TokenPair]]:
    """Seeded random pairs: prompts of 1 to 5 ids, responses of 1 to 12 and EOS; any id, pad and EOS too, inside."""

    def make(count: int, seed: int = 0, longest: int = 12) -> list[TokenPair]:
        random = np.random.default_rng(seed)
        found = []
        for number in range(count):
            prompt = random.integers(0, VOCABULARY, random.integers(1, 6))
            sides = (
                token_row(prompt, [*random.integers(0, VOCABULARY, random.integers(1, longest + 1)), EOS])
                for _ in range(2)
            )
            found.append(TokenPair(f"id{number}", "random", *sides))
        return found

    return make
