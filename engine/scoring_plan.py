"""Scores pairs shard by shard under a plan that is fixed when the work begins, and takes over what is scored already.

The plan says which rows are taken from the store and which are scored together, and lies in the work folder. So an
attempt that goes on from it computes the same numbers to the bit, and a crash loses one shard at most.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.files import write_atomically
from engine.fingerprint import digest
from engine.pace import Part, with_tokens
from engine.preferences.score_store import Scored, read_shard, write_shard
from engine.preferences.scores import row_key, scored_rows, scores_of

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from engine.models.passes import Passes
    from engine.preferences.pairs import TokenPair

_PLAN = "plan.json"
_TAKEN = "taken-"


@dataclass(frozen=True)
class Plan:
    """What is scored in which micro-batches, as positions in `Scoring.pairs`.

    Attributes:
        asked: what the runtime asked for, and which rows; another request makes another plan.
        taken: file of the rows that the store had.
        passes: the fields of `Passes`: how rows go through the model.
        shards: shard → micro-batch → positions.
    """

    asked: Mapping[str, Any]
    taken: str
    passes: Mapping[str, Any]
    shards: list[list[list[int]]]

    def write(self, folder: Path) -> None:
        """Keeps it, with a digest of its own."""
        content = asdict(self)
        write_atomically(folder / _PLAN, json.dumps({"digest": digest(content), **content}) + "\n")

    @classmethod
    def read(cls, folder: Path, asked: Mapping[str, Any]) -> "Plan | None":
        """The plan of an earlier attempt; None when there is none, it is damaged, or something else was asked for."""
        try:
            kept = json.loads((folder / _PLAN).read_text("utf-8"))
            sound = kept.pop("digest") == digest(kept) and kept["asked"] == asked
            return cls(**kept) if sound else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def has_plan(work: Path) -> bool:
    """Whether an interrupted attempt left a plan in a stage's work folder."""
    return (scoring_folder(work) / _PLAN).is_file()


def scoring_folder(work: Path) -> Path:
    """Where a stage keeps plan and shards while it works; a name with a dot in front is dropped when it is sealed."""
    return work / ".scoring"


def as_shards(parts: Sequence[Sequence[int]], sizes: Sequence[int], tokens: int) -> list[list[list[int]]]:
    """Micro-batches, in their order, in shards that are closed once they hold so many tokens of both sides."""
    shards: list[list[list[int]]] = []
    room = 0
    for part in parts:
        if room <= 0:
            shards.append([])
            room = tokens
        shards[-1].append(list(part))
        room -= sum(sizes[row] for row in part)
    return shards


def _passes(kept: Mapping[str, Any]) -> "Passes":
    from engine.models.forward import Forward
    from engine.models.passes import Passes

    return Passes(Forward(**kept["forward"]), kept["budget"], kept["pad_id"])


class Scoring:
    """The scores of some pairs, as far as they are known, in the work folder of one stage.

    Attributes:
        pairs: those to score, each row once.
        keys: their `row_key`.
        reused: how many of them the store had when the plan was made.
    """

    ASKS = frozenset({"layout", "score_batch_tokens", "score_shard_tokens", "memory_limit_gib"})  # of the runtime

    def __init__(self, folder: Path, pairs: "Sequence[TokenPair]", store: Scored, asked: Mapping[str, Any]) -> None:
        by_key = {row_key(pair): pair for pair in pairs}
        self.keys, self.pairs = list(by_key), list(by_key.values())
        self._folder, self._store = folder, store
        self._asked = {**asked, "rows": sha256(b"".join(self.keys)).hexdigest()}
        self._plan = Plan.read(folder, self._asked)
        self._taken = read_shard(folder / self._plan.taken) if self._plan else None
        if self._taken is None:
            self._begin()
        assert self._taken is not None
        self.reused = self._taken.num_rows

    def _begin(self) -> None:
        """Starts over, with what the store has; an earlier attempt's shards are there, too."""
        self._plan = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._taken = self._store.lookup(self.keys)

    @property
    def taken(self) -> "pa.Table":
        """SCORED_ROWS that the store had."""
        assert self._taken is not None
        return self._taken

    @property
    def unscored(self) -> "list[TokenPair]":
        """The pairs that the store had no scores of."""
        return [self.pairs[row] for row in self._missing()]

    def _missing(self) -> list[int]:
        known = set(self.taken["row_key"].to_pylist())
        return [row for row, key in enumerate(self.keys) if key not in known]

    def settle(self, choose: "Callable[[], Passes]") -> "Passes":
        """How the unscored pairs go through the model: as an interrupted attempt did it, else as `choose` says."""
        if self._plan:
            return _passes(self._plan.passes)
        passes, missing = choose(), self._missing()
        parts = passes.split({row: self.pairs[row].rows for row in missing})
        sizes = [self._tokens(row) for row in range(len(self.pairs))]
        name = write_shard(self._folder, self.taken, _TAKEN).name
        self._plan = Plan(self._asked, name, asdict(passes), as_shards(parts, sizes, self._asked["score_shard_tokens"]))
        self._plan.write(self._folder)
        return passes

    def some_taken(self, count: int) -> "list[tuple[TokenPair, tuple[float, float]]]":
        """At most so many of the pairs that the store had, spread evenly, with their stored sums."""
        keys = set(self.taken["row_key"].to_pylist())
        rows = [row for row, key in enumerate(self.keys) if key in keys]
        picked = rows[:: max(1, -(-len(rows) // count))]
        return [(self.pairs[row], scores_of(self.taken, self.keys[row])) for row in picked]

    def score(self, model: "torch.nn.Module", passes: "Passes", progress: Part) -> int:
        """Scores what is left of the plan, and publishes every shard as soon as it is on the disk.

        Args:
            progress: told at the start and after each batch how many of the unscored pairs are done, and how many
                tokens of both sides that took; a shard that is there already takes none.

        Returns:
            The tokens of what was scored, both sides of every pair.

        Raises:
            NumericsError, MemoryShortageError: as `score_pairs`; the finished shards are kept.
        """
        from engine.models.scoring import score_parts

        assert self._plan is not None
        done = tokens = 0
        for number, parts in enumerate(self._plan.shards):
            rows = [row for part in parts for row in part]
            shard = self._finished(number)
            if shard is None:
                progress(done, 0)
                told = with_tokens(progress, [self._tokens(row) for row in rows], before=done)
                scores = score_parts(model, self.pairs, parts, passes, progress=told)
                table = scored_rows([self.keys[row] for row in rows], [scores[row] for row in rows])
                shard = write_shard(self._folder, table, f"{number:05d}-")
                tokens += sum(self._tokens(row) for row in rows)
            self._store.publish(shard)  # also what an attempt wrote that was killed before it could
            done += len(rows)
        progress(done, 0)
        return tokens

    def _tokens(self, row: int) -> int:
        return sum(map(len, self.pairs[row].rows))

    def rows(self) -> "pa.Table":
        """SCORED_ROWS of all pairs, once they are scored."""
        import pyarrow as pa

        return pa.concat_tables([self.taken, *self._shards()])

    def _shards(self) -> "Iterator[pa.Table]":
        for number in range(len(self._plan.shards) if self._plan else 0):
            path = self._finished(number)
            rows = read_shard(path) if path else None
            assert rows is not None, f"shard {number} is not scored"
            yield rows

    def _finished(self, number: int) -> Path | None:
        """The file of a finished shard; one that was damaged counts as not finished."""
        for path in self._folder.glob(f"{number:05d}-*.parquet"):
            if read_shard(path) is not None:
                return path
            path.unlink()
        return None
