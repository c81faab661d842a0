"""A notebook's folder: the real stages in miniature under the profile `demo`, and a file of comparisons."""

import json
from pathlib import Path

import pytest

import engine.config

PROFILE = """
[download]
embedded_pairs = 40
[tokenize]
vocab_size = 300
max_length = 96
[subsample]
pairs = 24
eval_share = 0.2
[sft]
learning_rate = 1e-2
epochs = 1
batch_size = 12
architecture = {{ hidden_size = 16, intermediate_size = 32, layers = 1, heads = 2 }}
[train]
learning_rate = 5e-2
batch_size = 6
lora = {{ rank = 2, alpha = 8 }}
[train.monitor]
every_steps = 1000
[evaluate]
prompts = ["{root}/prompts.jsonl"]
max_new_tokens = 2
[runtime]
device = "cpu"
threads = 1
artifacts = "{root}/artifacts"
data = "{root}/data"
lock_wait_seconds = 0
"""
ROWS = [
    {"prompt": "How do I bake a cake?", "chosen": "Mix flour and eggs.", "rejected": "No."},
    {"prompt": "Wie spät ist es?", "chosen": "Zehn Uhr.", "rejected": "Nein."},
    {"prompt": "", "chosen": "a", "rejected": "b"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `mine.jsonl` in it; `demo` is a profile of seconds that stores below it."""
    profiles = tmp_path / "configs"
    profiles.mkdir()
    (profiles / "demo.toml").write_text(PROFILE.format(root=tmp_path), "utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How do I bake a cake?", "kind": "normal"}\n', "utf-8")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    monkeypatch.setattr(engine.config, "PROFILES", profiles)
    monkeypatch.chdir(tmp_path)
    return tmp_path
