"""That the proof turns red: with a pipeline that was broken on purpose, in the attempts only."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from proof.kills import Kill, prove_kills
from proof.table import RED
from proof.workshop import workshop

pytestmark = pytest.mark.slow

SEALING_FILE_BY_FILE = """
import os, shutil

rename = os.rename

def copied(source, target, **named):
    if not os.path.isdir(source):
        return rename(source, target, **named)
    os.mkdir(target)
    for name in sorted(os.listdir(source), key=lambda name: name != "manifest.json"):
        from_, to = os.path.join(source, name), os.path.join(target, name)
        copied(from_, to) if os.path.isdir(from_) else shutil.copyfile(from_, to)
    shutil.rmtree(source)

os.rename = copied
"""
FORGETTING_THE_RANDOM_STREAM = """
import torch

torch.set_rng_state = torch.random.set_rng_state = lambda state: None
"""
REDOING_WHAT_IS_SEALED = """
import shutil
from pathlib import Path

for folder in Path("artifacts/tokenize").glob("*"):
    shutil.rmtree(folder)
"""
THROWING_WORK_AWAY = """
import shutil
from pathlib import Path

for root in ("artifacts", "data"):
    for folder in Path(root, ".work").glob("*"):
        shutil.rmtree(folder)
"""
LEAVING_NO_CHECKPOINT_AT_A_STOP = """
from engine.training.loop import Trainer

Trainer._save_what_is_done = lambda *_: None
"""


def reason(folder: Path, sabotage: str, kills: Sequence[Kill]) -> str:
    """Why the proof of these kills is red."""
    script = folder / "sabotage.py"
    script.write_text(sabotage, "utf-8")
    with workshop(folder / "shop", seed=0, jobs=1, sabotage=script) as shop:
        [check] = prove_kills(shop, kills).checks
    assert check.state == RED
    return check.reason


def test_sealing_without_one_rename_is_found(tmp_path: Path) -> None:
    kills = [Kill("subsample", "before write", share / 10) for share in range(3, 10)]
    assert "as it was sealed" in reason(tmp_path, SEALING_FILE_BY_FILE, kills)


def test_going_on_with_other_random_numbers_is_found(tmp_path: Path) -> None:
    kills = [Kill("train", "after rename", 0.5)]
    assert "the adapter's bytes differ" in reason(tmp_path, FORGETTING_THE_RANDOM_STREAM, kills)


def test_making_a_sealed_stage_again_is_found(tmp_path: Path) -> None:
    kills = [Kill("sft", "after write", 0.5)]
    assert "is gone or made again" in reason(tmp_path, REDOING_WHAT_IS_SEALED, kills)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("sft", "sft did not go on from the checkpoint at step"),
        ("reference", "reference scored finished shards again"),
        ("train", "train did not go on from the checkpoint at step"),
    ],
)
def test_throwing_unfinished_work_away_is_found(tmp_path: Path, stage: str, said: str) -> None:
    assert said in reason(tmp_path, THROWING_WORK_AWAY, [Kill(stage, "after fsync", 0.4)])


def test_a_stop_that_leaves_no_checkpoint_is_found(tmp_path: Path) -> None:
    kills = [Kill("train", "SIGTERM, timed", 0.1 + share / 10) for share in range(8)]
    assert "was stopped by SIGTERM after step" in reason(tmp_path, LEAVING_NO_CHECKPOINT_AT_A_STOP, kills)
