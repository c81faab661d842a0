import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import SideError, alternate, trl_python


class Fake:
    """A side that writes down when it was asked, and fails at its `fails`th turn."""

    def __init__(self, name: str, calls: list[str], fails: int = 0) -> None:
        self.name, self.calls, self.fails = name, calls, fails

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self.calls.append(self.name)
        if self.calls.count(self.name) == self.fails:
            raise SideError(f"{self.name} failed at {do}")
        return {"seconds": 1.0}


def test_the_sides_alternate_strictly() -> None:
    calls: list[str] = []
    sides: Any = {name: Fake(name, calls) for name in ("ours", "trl", "seed")}
    answers = alternate(sides, "train", 3, between=lambda: calls.append("rate"), steps=[])
    assert calls == ["ours", "trl", "seed", "rate"] * 3
    assert {name: len(given) for name, given in answers.items()} == {"ours": 3, "trl": 3, "seed": 3}


def test_a_peer_that_fails_is_left_out_and_said_to_be() -> None:
    said: list[str] = []
    calls: list[str] = []
    sides: Any = {"ours": Fake("ours", calls), "trl": Fake("trl", calls, fails=2), "seed": Fake("seed", calls)}
    answers = alternate(sides, "train", 3, say=said.append)
    assert list(answers) == ["ours", "seed"]
    assert said == ["trl failed at train"]


def test_our_own_failure_ends_the_measurement() -> None:
    sides: Any = {"ours": Fake("ours", [], fails=1)}
    with pytest.raises(SideError):
        alternate(sides, "train", 3)


def test_an_interpreter_without_trl_is_refused_with_the_reason(tmp_path: Path) -> None:
    bare, said = tmp_path / "python", list[str]()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    assert trl_python(bare, tmp_path, said.append) is None
    assert said and "TRL is left out" in said[0] and "no TRL" in said[0]
