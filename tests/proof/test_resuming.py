import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.orders import Ended
from proof.places import Place
from proof.resuming import Resuming, Saved, gone_on_from, saved

KILLED, STOPPED, DONE = -9, 143, 0


def work(place: Place, stage: str = "train") -> Path:
    folder = place.folder / "artifacts" / ".work" / f"{stage}-{'a' * 16}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint(place: Place, step: int) -> Path:
    folder = work(place) / ".checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "digests.json").write_text(json.dumps({"weights": hashlib.sha256(b"weights").hexdigest()}), "utf-8")
    return folder


def shard(place: Place, number: str) -> Path:
    folder = work(place, "reference") / ".scoring"
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}-{hashlib.sha256(number.encode()).hexdigest()}.parquet"
    path.write_bytes(number.encode())
    return path


def steps(place: Place, *numbers: int) -> None:
    journal = work(place) / "logs" / "steps.jsonl"
    journal.parent.mkdir(exist_ok=True)
    journal.unlink(missing_ok=True)
    journal.write_text("".join(f'{{"step": {number}}}\n' for number in numbers), "utf-8")


def ended(code: int, *, step: int = 0, writes: tuple[str, ...] = ()) -> Ended:
    said = f"train      resumes\ndpo.train: going on from the checkpoint at step {step} of 32\n" if step else ""
    return Ended(code, "", said, writes)


def test_where_nothing_was_begun_nothing_is_saved(place: Place) -> None:
    assert saved(place) == Saved()
    assert not saved(place).anything


def test_the_newest_whole_checkpoint_counts(place: Place) -> None:
    checkpoint(place, 2)
    torn, changed = checkpoint(place, 4), checkpoint(place, 6)
    (torn / "digests.json").unlink()
    (changed / "weights").write_bytes(b"Weights")
    assert saved(place).step == 2
    assert saved(place).anything


def test_finished_shards_count_and_torn_ones_do_not(place: Place) -> None:
    shard(place, "00000"), shard(place, "00001").write_bytes(b"torn")
    assert saved(place).shards == {"00000"}


def test_the_step_reached_is_that_of_the_last_whole_line(place: Place) -> None:
    steps(place, 1, 2)
    with (work(place) / "logs" / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3')
    assert saved(place).reached == 2


def test_what_an_attempt_says_of_another_stage_is_not_taken_for_this_one() -> None:
    assert gone_on_from(ended(DONE, step=4), "train") == 4
    assert gone_on_from(ended(DONE, step=4), "sft") == 0


def test_going_on_from_the_newest_checkpoint_is_right(place: Place) -> None:
    checkpoint(place, 4)
    resuming = Resuming(place)
    checkpoint(place, 6)
    assert resuming.after(ended(KILLED, step=4)) == []
    assert resuming.left == 1


def test_a_kill_before_that_leaves_it_to_the_next_attempt(place: Place) -> None:
    checkpoint(place, 4)
    resuming = Resuming(place)
    assert resuming.after(ended(KILLED)) == []
    assert resuming.after(ended(KILLED, step=4)) == []


def test_an_attempt_that_left_nothing_is_not_counted(place: Place) -> None:
    resuming = Resuming(place)
    assert resuming.after(ended(KILLED)) == []
    assert resuming.left == 0


def test_going_on_from_an_older_one_is_told(place: Place) -> None:
    checkpoint(place, 4)
    assert "went on from step 2" in Resuming(place).after(ended(KILLED, step=2))[0]


@pytest.mark.parametrize("then", [None, 2, 6])
def test_starting_anew_is_told_wherever_that_ends(place: Place, then: int | None) -> None:
    kept = checkpoint(place, 4)
    resuming = Resuming(place)
    kept.rename(kept.with_name(".gone"))
    if then:
        checkpoint(place, then)
    assert "did not go on from the checkpoint at step 4" in resuming.after(ended(KILLED))[0]


def test_another_checkpoint_of_the_same_step_is_not_the_one_that_was_left(place: Place) -> None:
    kept = checkpoint(place, 4)
    resuming = Resuming(place)
    kept.rename(kept.with_name(".gone"))
    checkpoint(place, 4)
    assert "did not go on" in resuming.after(ended(KILLED))[0]


def test_a_stage_that_was_sealed_without_a_word_did_not_go_on(place: Place, seal: Callable[..., Path]) -> None:
    checkpoint(place, 4)
    resuming = Resuming(place)
    shutil.rmtree(work(place))
    seal("train")
    assert resuming.after(ended(DONE)) == ["train did not go on from the checkpoint at step 4"]


def test_a_finished_shard_that_is_written_again_is_told(place: Place) -> None:
    shard(place, "00000"), shard(place, "00001")
    resuming, again = Resuming(place), str(work(place, "reference") / ".scoring" / ".00001-17-12345.parquet")
    other = str(work(place, "reference") / ".scoring" / ".00002-17-12345.parquet")
    assert resuming.after(ended(KILLED, writes=(other,))) == []
    assert resuming.after(ended(KILLED, writes=(again,))) == ["reference scored finished shards again: 00001"]


def test_a_finished_shard_that_is_gone_is_told(place: Place) -> None:
    gone = shard(place, "00000")
    resuming = Resuming(place)
    gone.unlink()
    assert resuming.after(ended(KILLED)) == ["reference lost finished shards: 00000"]


@pytest.mark.parametrize(("code", "problems"), [(STOPPED, 1), (KILLED, 0)])
def test_a_stop_keeps_the_step_reached_and_a_kill_need_not(place: Place, code: int, problems: int) -> None:
    work(place)
    resuming = Resuming(place)
    checkpoint(place, 4), steps(place, 1, 2, 3, 4, 5)
    assert len(resuming.after(ended(code))) == problems


def test_a_stop_is_not_blamed_for_what_a_kill_before_it_had_lost(place: Place) -> None:
    checkpoint(place, 4), steps(place, 1, 2, 3, 4, 5)
    assert Resuming(place).after(ended(STOPPED, step=4)) == []
