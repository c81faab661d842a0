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
