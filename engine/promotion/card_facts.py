"""What the model card tells of a model: read from the files that the stages before sealed, and from nothing else.

Not from train's `logs/`: they are outside its digest, and an attempt that was cut off may have left them damaged.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from engine.artifact import Artifact
from engine.errors import PipelineError
from engine.policies import policy_name
from engine.preferences.schema import GENERATIONS, TOKENS, read_batches, read_rows
from engine.sources import ModelSource

T = TypeVar("T")
_SAMPLES_PER_KIND = 3
_log = logging.getLogger("dpo.promote")


@dataclass(frozen=True)
class Sample:
    """A question, and what the model said before and after its training; None where it was not asked."""

    kind: str
    prompt: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Facts:
    """All that a card is made of.

    Attributes:
        candidate: identity of the model.
        model: the `[model]` table.
        policy: the name that the adapter keeps of the model it belongs on.
        made: whether the sft stage made that model.
        commit: of a policy that was given and lies on the Hub; else empty.
        trained: what `train` handed down: β, loss, how far it went, the monitor's findings.
        how: what `train` handed down of how it was run: dtype, attention, quantization.
        evaluated: `metrics.json` of `evaluate`.
        verdict: `verdict.json`.
        template: of the prompts.
        lora: `adapter_config.json`; empty where it is not there.
        sources: pairs trained on and held out, by source, the largest first.
        samples: the first of each kind.
    """

    candidate: str
    model: ModelSource
    policy: str
    made: bool
    commit: str
    trained: Mapping[str, Any]
    how: Mapping[str, Any]
    evaluated: Mapping[str, Any]
    verdict: Mapping[str, Any]
    template: str = ""
    lora: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @classmethod
    def read(
        cls,
        inputs: Mapping[str, Artifact],
        model: ModelSource,
        told: Mapping[str, Any],
        evaluated: Mapping[str, Any],
        verdict: Mapping[str, Any],
    ) -> Self:
        """Of the sealed inputs of `promote`. What a card can do without is left out where it cannot be read.

        Args:
            told: what `promote` hands down, `candidate` and `given_policy` among it.

        Raises:
            StoreError: `train` handed nothing down.
        """
        return cls(
            candidate=str(told["candidate"]),
            model=model,
            policy=policy_name(inputs, model),
            made="sft" in inputs,
            commit=_commit(told["given_policy"].get("policy")),
            trained=inputs["train"].handed_down,
            how=inputs["train"].handed_down["how"],
            evaluated=evaluated,
            verdict=verdict,
            template=str(_object(inputs["tokenize"], "handed_down.json").get("template", "")),
            lora=_object(inputs["train"], "adapter/adapter_config.json"),
            sources=_sources(inputs["subsample"]),
            samples=tuple(_samples(inputs["evaluate"])),
        )

    @property
    def measured(self) -> Mapping[str, Any]:
        """The numbers by name, with their 95 % intervals under `intervals`, as `measures.shown` takes them."""
        return {**self.evaluated["metrics"], "intervals": self.evaluated["intervals"]}

    @property
    def prompt_sets(self) -> list[str]:
        """Names of the sets and files of prompts; `prompts.identify_sets` has `[name, …]`, or a list of those."""
        sets = self.evaluated.get("identity", {}).get("prompts", ())
        return [str(name) for each in sets if each for name, *_ in ([each] if isinstance(each[0], str) else each)]

    def rate(self, metric: str) -> float | None:
        """A number that was measured; None where it was not."""
        found = self.evaluated["metrics"].get(metric)
        return float(found) if isinstance(found, int | float) else None


def told_of(facts: Facts, name: str, part: Callable[[Facts], T]) -> T | None:
    """What a part of the card tells; None where there is nothing, or no way to, which the log then says."""
    try:
        return part(facts) or None
    except Exception as error:
        _log.warning("the model card leaves out %s: %s: %s", name, type(error).__name__, error)
        return None


def _commit(identity: object) -> str:
    """Of `name@commit`, which a repository's identity is; a folder's is a list of files."""
    return identity.rpartition("@")[2] if isinstance(identity, str) else ""


def _object(artifact: Artifact, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads((artifact.path / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sources(subsample: Artifact) -> Mapping[str, tuple[int, int]]:
    train, held_out = (_counted(subsample.path / f"{name}.parquet") for name in ("train", "eval"))
    names = sorted({*train, *held_out}, key=lambda name: (-train[name] - held_out[name], name))
    return {name: (train[name], held_out[name]) for name in names}


def _counted(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    try:
        for batch in read_batches(path, TOKENS, ["source"]):
            found.update(str(source) for source in batch.column(0).to_pylist())
    except (PipelineError, OSError, ValueError):
        return Counter()
    return found


def _samples(evaluated: Artifact) -> Iterator[Sample]:
    said: dict[tuple[str, str], dict[str, str]] = {}
    try:
        for rows in read_rows(evaluated.path / "generations.parquet", GENERATIONS):
            for row in rows:
                said.setdefault((row["kind"], row["prompt"]), {}).setdefault(row["policy"], row["generation"])
    except (PipelineError, OSError, ValueError):
        return
    for kind in dict.fromkeys(kind for kind, _ in said):
        for key in islice((key for key in said if key[0] == kind), _SAMPLES_PER_KIND):
            yield Sample(*key, said[key].get("start"), said[key].get("dpo"))
