"""What an interrupted stage had saved, and whether the attempts after it went on from just that.

Read off the work folder, what attempts say and what they write: the pipeline's own code is not asked.
"""

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proof.orders import Ended
from proof.places import Place, sha256
from proof.profile import ROOTS

_TERMINATED = frozenset({128 + signal.SIGTERM, -signal.SIGTERM})
_SHARD = re.compile(r"/\.scoring/\.(\d+)-[^/]*$")  # as it is called until it is whole


@dataclass(frozen=True)
class Saved:
    """What lies in the work folder of the stage at work.

    Attributes:
        stage: that stage; empty when none has begun.
        step: that of the newest whole checkpoint, 0 when there is none.
        checkpoint: that folder's inode.
        shards: the numbers of the finished shards of scores.
        reached: the last step in the journal of steps.
        journal: that file's inode and time: they tell whether an attempt has written to it.
    """

    stage: str = ""
    step: int = 0
    checkpoint: int = 0
    shards: frozenset[str] = frozenset()
    reached: int = 0
    journal: tuple[int, int] = (0, 0)

    @property
    def anything(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self.step or self.shards)


def saved(place: Place) -> Saved:
    """What the stage at work has saved in a place. Reads every byte of it."""
    stage = place.at_work()
    folders = [path for root in ROOTS for path in (place.folder / root / ".work").glob(f"{stage}-*")] if stage else []
    if not folders:
        return Saved()
    folder = max(folders, key=lambda path: path.stat().st_mtime_ns)
    whole = [path for path in sorted((folder / ".checkpoints").glob("step-*")) if _is_whole(path)]
    step, inode = (int(whole[-1].name.removeprefix("step-")), whole[-1].stat().st_ino) if whole else (0, 0)
    shards = frozenset(
        number
        for path in (folder / ".scoring").glob("*.parquet")
        for number, _, digest in [path.stem.partition("-")]
        if number.isdigit() and digest == sha256(path)
    )
    return Saved(stage, step, inode, shards, *_reached(folder / "logs" / "steps.jsonl"))


class Resuming:
    """Holds every attempt in one place to what lay there when it began.

    Attributes:
        left: how many attempts that did not end well left something to go on from.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._before = saved(place)
        self.left = 0

    def after(self, ended: Ended) -> list[str]:
        """What is wrong with how an attempt used what lay there, and with what it left. It must have been traced."""
        before, now = self._before, saved(self._place)
        self._before = now
        self.left += ended.code != 0 and now.anything
        sealed = bool(before.stage) and self._place.is_sealed(before.stage)
        return [*_thrown_away(before, now, ended, sealed), *_lost_by_a_stop(before, now, ended)]


def gone_on_from(ended: Ended, stage: str) -> int:
    """The step of the checkpoint from which an attempt said that it goes on in a stage; 0 when it did not say so."""
    told = re.search(rf"^dpo\.{stage}: going on from the checkpoint at step (\d+) of ", ended.err, re.MULTILINE)
    return int(told[1]) if told else 0


def _thrown_away(before: Saved, now: Saved, ended: Ended, sealed: bool) -> Iterator[str]:
    told, kept = gone_on_from(ended, before.stage), (now.step, now.checkpoint) == (before.step, before.checkpoint)
    if told and told != before.step:
        yield f"{before.stage} went on from step {told}, and the newest checkpoint was that of step {before.step}"
    if before.step and not told and (sealed or not kept):  # else it ended before it came to that
        yield f"{before.stage} did not go on from the checkpoint at step {before.step}"
    if not sealed and now.step < before.step:
        yield f"{before.stage} lost the checkpoint at step {before.step}"
    again = before.shards & {found[1] for path in ended.writes if (found := _SHARD.search(path))}
    if again:
        yield f"{before.stage} scored finished shards again: {', '.join(sorted(again))}"
    if not sealed and before.shards - now.shards:
        yield f"{before.stage} lost finished shards: {', '.join(sorted(before.shards - now.shards))}"


def _lost_by_a_stop(before: Saved, now: Saved, ended: Ended) -> Iterator[str]:
    """SIGTERM leaves a checkpoint of the last step that was done; what a kill had lost before does not count."""
    done = now.reached if now.journal != before.journal else 0
    if ended.code in _TERMINATED and done > now.step:
        yield f"{now.stage} was stopped by SIGTERM after step {done}, and its newest checkpoint is of step {now.step}"


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / "digests.json").read_text("utf-8"))
        return bool(digests) and all(sha256(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _reached(journal: Path) -> tuple[int, tuple[int, int]]:
    """The step of the last whole line, and what tells whether the file was written to."""
    if not journal.is_file():
        return 0, (0, 0)
    status, steps = journal.stat(), [0]
    for line in journal.read_bytes().split(b"\n"):
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, TypeError, KeyError):  # half a line
            continue
    return steps[-1], (status.st_ino, status.st_mtime_ns)
