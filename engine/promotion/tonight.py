"""What the evaluate stage found of tonight's model, as the comparison with the one in service needs it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from engine.artifact import Artifact
from engine.preferences.schema import EVALUATED, GENERATIONS, WEIGHTED, read_table
from engine.prompts import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from engine.dpo.losses import PairLogps
    from engine.evaluation.sums import Sums
    from engine.models.generation import GenerationSettings
    from engine.preferences.pairs import TokenPair

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Tonight:
    """Its numbers by pair, and its answers.

    Attributes:
        identity: what decides its numbers, as `metrics.json` tells it.
        rows: EVALUATED rows by pair_id.
        weighted: WEIGHTED rows by pair_id; none where its loss weighs all tokens alike.
        answers: GENERATIONS rows of the trained policy, in the order of the prompts.
    """

    identity: Mapping[str, Any]
    rows: Rows
    weighted: Rows
    answers: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, made: Artifact) -> Self:
        """Raises DataError where a table is not what this version writes."""
        identity = json.loads(made.file("metrics.json").read_text("utf-8"))["identity"]
        rows = read_table(made.file("pairs.parquet"), EVALUATED).to_pylist()
        weighs = identity["ld_alpha"] is not None
        weighted = read_table(made.file("weighted.parquet"), WEIGHTED).to_pylist() if weighs else []
        said = read_table(made.file("generations.parquet"), GENERATIONS).to_pylist()
        answers = [row for row in said if row["policy"] == "dpo"]
        return cls(identity, _by_id(rows), _by_id(weighted), answers)

    @property
    def prompts(self) -> list[Prompt]:
        """What it was asked, from its answers: the files that the prompts came from may hold others by now."""
        return [Prompt(row["prompt"], row["kind"], row["expects"] or "", row["prompt_set"]) for row in self.answers]

    def logps(self, pairs: "Sequence[TokenPair]") -> "PairLogps":
        """Its logps of these pairs and those of the policy it started from."""
        from engine.evaluation.sums import pair_logps

        return pair_logps(pairs, self.sums("policy", pairs), self.sums("ref", pairs))

    def sums(self, whose: Literal["policy", "ref"], pairs: "Sequence[TokenPair]") -> "Sums":
        """The logps of these pairs: plain, and as its loss weighs their tokens where it does."""
        from engine.evaluation.sums import Sums

        return Sums(_sums(self.rows, whose, pairs), _sums(self.weighted, whose, pairs) if self.weighted else None)

    def settings(self) -> "GenerationSettings":
        """How it answered."""
        from engine.models.generation import PRESETS

        return replace(PRESETS[self.identity["generation"]], max_new_tokens=self.identity["max_new_tokens"])


def _by_id(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return {row["pair_id"]: row for row in rows}


def _sums(rows: Rows, whose: str, pairs: "Sequence[TokenPair]") -> "Tensor":
    """(pairs, 2) float64, chosen and rejected."""
    import torch

    names = [f"{whose}_{side}_logps" for side in ("chosen", "rejected")]
    found = [[rows[pair.pair_id][name] for name in names] for pair in pairs]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)
