from pathlib import Path
from typing import Any

import pytest

from benchmarks import measures, tokenizing
from benchmarks.measures import Bench, largest_gap, relative_error
from benchmarks.serving import Job
from benchmarks.table import row
from benchmarks.workload import PROFILES, SHAPES, make_pairs, write_pairs

SHAPE, PROFILE = SHAPES["tiny"], PROFILES["short"]


class Scripted:
    """A side whose seconds are given; it answers as the real ones do."""

    def __init__(self, name: str, *_: Any) -> None:
        self.seconds = {"ours": 2.0, "trl": 8.0, "seed": 6.0}[name.partition(" ")[0]]
        self.bytes = {"ours": 1 << 20, "trl": 4 << 20, "seed": 2 << 20}[name.partition(" ")[0]]
        self.half = name == "ours bfloat16"

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def load(self, job: Job) -> dict[str, Any]:
        return {"machine": "a machine", "way": ""}

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        seconds = self.seconds / (2 if self.half else 1)
        answers = {
            "plan": {"result": [[0, 1], [2, 3]]},
            "matmul": {"result": 2e9},
            "token_logps": {"result": [-1.01] if self.half else [-1.0]},
            "memory": {"seconds": seconds, "peak_bytes": self.bytes, "total_bytes": 2 * self.bytes},
        }
        return answers.get(do, {"seconds": seconds, "result": [0.5]})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(measures, "Process", Scripted)
    for pairs in {8, measures.MEMORY_PAIRS}:  # a workload that is there is not made again
        folder = tmp_path / f"tiny-97-short-{pairs}"
        folder.mkdir()
        write_pairs(folder / "pairs.parquet", make_pairs(pairs, PROFILE, SHAPE.vocabulary))
    here = Path("python")
    pythons = dict.fromkeys(("ours", "trl", "seed"), here)
    return Bench(pythons, Job(""), 5, 8, tmp_path, tmp_path, lambda text: None, {"date": "today"})


def test_speed_is_pairs_a_second_against_every_peer_and_the_floor_against_the_machine(bench: Bench) -> None:
    rows = list(measures.speed(bench, SHAPE, PROFILE, ["trl", "seed"], ["train", "score", "limit"]))
    found = {(each.name, each.peer): each for each in rows}
    assert list(found) == [
        ("train", "trl"), ("train", "seed"), ("limit", "peak"), ("score", "trl"),
    ]  # fmt: skip
    assert (found["train", "trl"].ours, found["train", "trl"].theirs, found["train", "trl"].ratio) == (4.0, 1.0, 4.0)
    assert found["train", "seed"].ratio == 3.0
    assert found["limit", "peak"].theirs == 2.0
    shares = [found[do, "trl"].more["share_of_peak"] for do in ("score", "train")]
    assert 0 < shares[0] < shares[1] == pytest.approx(found["limit", "peak"].ratio, rel=0.01)
    assert all((each.runs, each.machine, each.date) == (5, "a machine", "today") for each in rows)


def test_a_peer_without_an_interpreter_is_left_out(bench: Bench) -> None:
    del bench.pythons["trl"]
    rows = list(measures.speed(bench, SHAPE, PROFILE, ["trl", "seed"], ["train"]))
    assert [each.peer for each in rows] == ["seed"]


def test_without_any_peer_our_own_speed_is_still_a_row(bench: Bench) -> None:
    (made,) = measures.speed(bench, SHAPE, PROFILE, [], ["train"])
    assert (made.peer, made.ours, made.ratio) == ("none", 4.0, 1.0)


def test_memory_is_a_ratio_of_peaks_in_mib_for_the_vocabulary_it_was_measured_with(bench: Bench) -> None:
    (made,) = measures.memory(bench, SHAPE, PROFILE, ["trl"])
    assert (made.ours, made.theirs, made.ratio, made.unit, made.more) == (1.0, 4.0, 0.25, "MiB", {"vocabulary": 97})


def test_bf16_is_held_against_our_own_fp32_and_says_how_far_it_is_off(bench: Bench) -> None:
    (made,) = measures.bf16(bench, SHAPE, PROFILE)
    assert (made.ratio, made.more["logps_error"]) == (2.0, 0.01)


def test_tokenizing_is_measured_elsewhere_and_dated_here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    found = row("tokenize", "small", "short", "encode", [1.1], [1.0], "s", pairs=7).as_json()
    monkeypatch.setattr(tokenizing, "measure", lambda profiles, runs: [found] * len(profiles))
    (made,) = measures.tokenize(bench, ["short"])
    assert (made.ratio, made.met, made.more, made.date) == (1.1, True, {"pairs": 7}, "today")
    assert "torch" in made.machine


def test_scale_says_for_how_many_pairs(bench: Bench) -> None:
    (made,) = measures.scale(bench, SHAPE, PROFILE)
    assert (made.more["pairs"], made.more["peak_mib"], made.ratio) == (8, 1.0, 1.0)


def test_differences_are_the_largest_and_errors_the_mean() -> None:
    assert largest_gap([1.0, 2.0], [1.5, 2.0]) == 0.5
    assert relative_error([-1.0, -2.2], [-1.0, -2.0]) == pytest.approx(0.05)
