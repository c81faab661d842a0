"""A notebook's folder: the real stages in miniature under the profile `demo`, and a file of comparisons."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import engine.config

ROWS = [
    {"prompt": "How do I bake a cake?", "chosen": "Mix flour and eggs.", "rejected": "No."},
    {"prompt": "Wie spät ist es?", "chosen": "Zehn Uhr.", "rejected": "Nein."},
    {"prompt": "", "chosen": "a", "rejected": "b"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_miniature: Callable[[Path, Path], None]) -> Path:
    """The working directory, with `mine.jsonl` in it; `demo` is a profile of seconds that stores below it."""
    profiles = tmp_path / "configs"
    profiles.mkdir()
    write_miniature(profiles / "demo.toml", tmp_path)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    monkeypatch.setattr(engine.config, "PROFILES", profiles)
    monkeypatch.chdir(tmp_path)
    return tmp_path
