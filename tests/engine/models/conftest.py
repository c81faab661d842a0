"""Models and tokenizers on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A tokenizer of `size` whole words, pad = unk = id 0; keyword arguments are its special tokens."""
    from tokenizers import Tokenizer, models

    def make(size: int = 50, first: str = "w3", **special: Any) -> PreTrainedTokenizerFast:
        words = ["<unk>", "<s>", "</s>", first, *(f"w{number}" for number in range(4, size))]
        vocabulary = {word: index for index, word in enumerate(words)}
        model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        return PreTrainedTokenizerFast(tokenizer_object=model, **(SPECIAL | special))

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model, an adapter or a tokenizer into a folder of a given name, and returns the folder."""

    def save(made: Any, name: str = "model", **arguments: Any) -> Path:
        made.save_pretrained(tmp_path / name, **arguments)
        return tmp_path / name

    return save


VOCABULARY = 97
# Of every architecture the smallest that still has what makes it one; wide weights, lest predictions be uniform.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GATED),
    "llama, tied": ("Llama", GATED | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", GATED),
    "qwen3": ("Qwen3", GATED | {"head_dim": 12}),
    "mistral": ("Mistral", GATED | {"sliding_window": 40}),
    "mistral, short window": ("Mistral", GATED | {"sliding_window": 3}),
    "gemma": ("Gemma", GATED | {"head_dim": 12, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GATED | {
        "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 40, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0, "tie_word_embeddings": True,
    }),
    "gpt2": ("GPT2", {"n_inner": 48, "tie_word_embeddings": True}),
    "granite": ("Granite", GATED | {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7}),
    "cohere": ("Cohere", GATED | {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "phi": ("Phi", GATED | {"partial_rotary_factor": 0.5}),
    "gptj": ("GPTJ", {"rotary_dim": 4, "n_inner": 48}),
}  # fmt: skip


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A random causal language model by its name in the zoo, in eval mode; keyword arguments are its config's."""
    import torch
    import transformers

    def make(name: str, **overrides: Any) -> Any:
        kind, settings = ZOO[name]
        torch.manual_seed(3)
        config = getattr(transformers, f"{kind}Config")(**(SIZES | settings | overrides))
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():  # transformers begins with biases of nothing and gains of one
            for value in model.parameters():
                value.add_(0.05 * torch.randn_like(value)) if value.ndim == 1 else value
        return model

    return make


@pytest.fixture(scope="session")
def adapt() -> Callable[..., Any]:
    """Puts a LoRA adapter on a model that already changes it; dropout off unless given."""
    import torch

    from engine.models.lora import Lora, add_lora, trainable_parameters

    def put(model: Any, targets: str | list[str] = "all-linear", dropout: float = 0.0) -> Any:
        adapted = add_lora(model, Lora(4, 8.0, dropout, targets), seed=5, base_name="zoo")
        with torch.no_grad():
            for value in trainable_parameters(adapted).values():
                value.copy_(0.1 * torch.randn_like(value))
        return adapted.eval()

    return put
