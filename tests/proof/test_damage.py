import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proof.damage import EMPTY, FLIP, HALF, Damage, _unseen, kind, one_of_each
from proof.lane import Lane
from proof.orders import Ended, Order
from proof.places import Place
from proof.table import RED, Check
from proof.workshop import Workshop


@pytest.mark.parametrize(("what", "length"), [(FLIP, 8), (EMPTY, 0), (HALF, 4)])
def test_damage_changes_the_file_and_keeps_its_inode(tmp_path: Path, what: str, length: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345678")
    inode = file.stat().st_ino
    Damage(file, what).do(random.Random(0))
    found = file.read_bytes()
    assert (len(found), file.stat().st_ino) == (length, inode)
    assert sum(a != b for a, b in zip(found, b"12345678", strict=False)) == (what == FLIP)


def test_keys_steps_runs_and_times_do_not_make_a_kind() -> None:
    names = [
        ("artifacts/sft/0123456789abcdef/policy/model.safetensors", "artifacts/sft/KEY/policy/model.safetensors"),
        ("artifacts/.work/sft-0123456789abcdef/.checkpoints/step-00000012/state.json",
         "artifacts/.work/sft-KEY/.checkpoints/step-N/state.json"),
        ("artifacts/runs/20260102-030405-tiny-02/run.json", "artifacts/runs/RUN/run.json"),
        ("artifacts/train/0123456789abcdef/logs/train/events.out.tfevents.17.host.1.0",
         "artifacts/train/KEY/logs/train/events"),
    ]  # fmt: skip
    assert [kind(Path(path)) for path, _ in names] == [name for _, name in names]


def test_one_file_of_every_kind_is_found_and_no_empty_one(tmp_path: Path) -> None:
    for name in ("artifacts/runs/20260102-030405-a/run.json", "artifacts/runs/20260102-030406-a/run.json", "data/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("something", "utf-8")
    (tmp_path / "data" / "empty").touch()
    (tmp_path / "elsewhere").write_text("something", "utf-8")
    assert set(one_of_each(tmp_path)) == {"artifacts/runs/RUN/run.json", "data/x"}


class Acted:
    """A lane whose runs leave an adapter and, when `careful`, make one anew whatever its size and times are."""

    def __init__(self, verified: int, *, careful: bool) -> None:
        self.verified, self.careful = verified, careful

    def start(self, order: Order) -> int:
        return 1

    def wait(self, pid: int, order: Order) -> Ended:
        if order.words[0] == "verify":
            return Ended(self.verified, "", "adapter_model")
        adapter = Path(order.folder, "artifacts", "train", "key", "adapter", "adapter_model.safetensors")
        if self.careful or not adapter.is_file():
            adapter.parent.mkdir(parents=True, exist_ok=True)
            adapter.write_bytes(b"weights")
        return Ended(0, "", "")


def unseen(folder: Path, lane: Acted, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setattr(Place, "finish", lambda *_: [])
    made: Any = SimpleNamespace(
        lanes=[lane], seed=0, baseline=SimpleNamespace(outcome=None), place=lambda name, _: Place.new(folder, named)
    )
    named = cast(Lane, lane)
    return _unseen(cast(Workshop, made))


def test_a_flip_that_verify_finds_is_green_and_a_verify_that_cannot_say_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unseen(tmp_path / "found", Acted(1, careful=False), monkeypatch).state != RED
    assert unseen(tmp_path / "unsaid", Acted(2, careful=False), monkeypatch).state == RED


def test_a_flip_that_no_run_reused_says_nothing_of_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was not reused" in unseen(tmp_path, Acted(1, careful=True), monkeypatch).reason
