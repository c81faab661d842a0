"""The held-out pairs on which tonight's model and the one in service can be told apart without favour.

Held out is what tonight's model was not trained on. The model in service may have been, and it may read the same text
in other ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from engine.artifact import Artifact
from engine.preferences.ledger import Ledger
from engine.preferences.pairs import TokenPair, load_pairs
from engine.preferences.schema import PAIRS, TOKENS, read_batches, read_table, writer
from engine.preferences.tokenizing import tokenize_pairs
from engine.promotion.incumbent import Incumbent

TRAINED_ON = "trained_on"  # the reason in the ledger


@dataclass(frozen=True)
class HeldOut:
    """Tonight's held-out pairs without those that the model in service was trained on.

    Attributes:
        tonight, service: the same pairs in the same order, in the ids of tonight's model and of the one in service.
        same_ids: whether these are the same.
        trained_on: how many were left out, for it was trained on them or on their prompts.
        dropped: how many more, for its template or limits leave nothing of them to score.
    """

    tonight: list[TokenPair]
    service: list[TokenPair]
    same_ids: bool
    trained_on: int
    dropped: int

    @classmethod
    def of(cls, incumbent: Incumbent, inputs: Mapping[str, Artifact], work: Path) -> Self:
        """The pairs of tonight's `subsample` that are left, which the model in service reads in ids of its own.

        Args:
            inputs: tonight's artifacts of `download`, `tokenize` and `subsample`.
            work: a stage's work folder. Its `ledger.parquet` says which pairs were left out, and which of those that
                were tokenized anew were cut.

        Raises:
            Unavailable: the training pairs or the tokenizer of the model in service cannot be read.
        """
        path = inputs["subsample"].file("eval.parquet")
        rows = read_table(path, TOKENS, ["pair_id", "prompt_id", "source", "row"]).to_pylist()
        trained_on = incumbent.trained_on({row["pair_id"]: row["prompt_id"] for row in rows})
        kept = [pair for pair in load_pairs(path) if pair.pair_id not in trained_on]
        same_ids = incumbent.reads_as(inputs["tokenize"])
        with Ledger(work / "ledger.parquet") as ledger:
            for row in rows:
                if row["pair_id"] in trained_on:
                    place = {name: row[name] for name in ("source", "row", "pair_id")}
                    ledger.add(TRAINED_ON, **place, detail="the model in service was trained on this prompt")
            own = kept if same_ids else _written_anew(incumbent, kept, inputs["download"], work, ledger)
        readable = {pair.pair_id for pair in own}
        tonight = [pair for pair in kept if pair.pair_id in readable]
        return cls(tonight, own, same_ids, len(trained_on), len(kept) - len(own))


def _written_anew(
    incumbent: Incumbent, pairs: Sequence[TokenPair], downloaded: Artifact, work: Path, ledger: Ledger
) -> list[TokenPair]:
    """The pairs in the ids of the model in service, in their order, without those that its limits leave nothing of."""
    form, limits = incumbent.writing()
    texts = _texts(downloaded.file("pairs.parquet"), {pair.pair_id for pair in pairs})
    tokens = work / ".service.parquet"  # what begins with a dot is not sealed
    with writer(tokens, TOKENS) as out:
        for table in tokenize_pairs(texts, form, limits, ledger):
            out.write_table(table)
    written = {pair.pair_id: pair for pair in load_pairs(tokens)}
    return [written[pair.pair_id] for pair in pairs if pair.pair_id in written]


def _texts(path: Path, pair_ids: set[str]) -> Iterator[pa.RecordBatch]:
    """PAIRS of those ids, each once: the same pair may stand in several rows."""
    wanted = set(pair_ids)
    for batch in read_batches(path, PAIRS):
        places = []
        for place, pair_id in enumerate(batch["pair_id"].to_pylist()):
            if pair_id in wanted:
                wanted.remove(pair_id)
                places.append(place)
        if places:
            yield batch.take(pa.array(places))
