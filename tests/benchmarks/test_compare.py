import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, measures
from benchmarks.processes import SideError
from benchmarks.table import Row, row


@pytest.mark.parametrize("wrong", [["--runs", "0"], ["--pairs", "6"], ["--shapes", "huge"], ["--only", "luck"]])
def test_a_wrong_option_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.parse(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_default_is_what_make_bench_promises() -> None:
    given = compare.parse([])
    assert given.only == ["train", "score", "limit", "memory", "bf16", "tokenize"]
    assert (given.shapes, given.profiles, given.peers) == (["small", "768"], ["short"], ["trl", "seed"])
    assert given.runs >= 5


def test_one_measurement_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def memory(*_: Any) -> Iterator[Row]:
        yield row("memory", "tiny", "short", "trl", [1.0], [2.0], "MiB")

    def speed(*_: Any) -> Iterator[Row]:
        raise SideError("ours failed at train")
        yield

    monkeypatch.setattr(measures, "memory", memory)
    monkeypatch.setattr(measures, "speed", speed)
    out = tmp_path / "found.json"
    asked = ["--shapes", "tiny", "--peers", "none", "--only", "train", "memory", "--out", str(out)]
    assert compare.main(asked) == 0
    assert [each["name"] for each in json.loads(out.read_text("utf-8"))] == ["memory"]
    assert "ours failed at train" in capsys.readouterr().out


def test_nothing_measured_is_a_failure_and_leaves_the_old_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measures, "memory", lambda *_: iter(()))
    out = tmp_path / "found.json"
    out.write_text("[]")
    asked = ["--shapes", "tiny", "--peers", "none", "--only", "memory", "--out", str(out)]
    assert compare.main(asked) == 1
    assert out.read_text() == "[]"
