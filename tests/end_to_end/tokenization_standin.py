"""A tokenizer of single characters that no library knows: it is loaded by running this file, and in no other way."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer


class StandinTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Characters of `vocab.json`; any other is UNK. Asked for special tokens, it puts BOS first."""

    vocab_files_names = {"vocab_file": "vocab.json"}  # noqa: RUF012 — the library's own way of declaring it
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **others: Any) -> None:
        self.ids: dict[str, int] = json.loads(Path(vocab_file).read_text("utf-8"))
        self.characters = {index: character for character, index in self.ids.items()}
        super().__init__(**others)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return self.ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.characters.get(index, "<unk>")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [self.bos_token_id, *ids, *(pair or [])]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}vocab.json"
        path.write_text(json.dumps(self.ids, ensure_ascii=False), "utf-8")
        return (str(path),)
