"""What a stage is: its config, its inputs, and the function that makes its artifact."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from engine.config import Runtime, Strict
from engine.sources import Sources
from engine.store import HANDED_DOWN, Artifact

C = TypeVar("C", bound=Strict)

Action = Literal["reuse", "run", "resume", "skip"]


@dataclass(frozen=True)
class Decision:
    """What happens, or happened, to one stage of a run, and why.

    Attributes:
        key: None while a stage above has yet to run.
        path: the artifact's folder when there is one.
        seconds: how long it took, or took when it was made; None when unknown.
    """

    stage: str
    action: Action
    why: str
    key: str | None = None
    path: Path | None = None
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        return {
            "stage": self.stage,
            "key": self.key,
            "action": self.action,
            "why": self.why,
            "path": str(self.path) if self.path else None,
            "seconds": self.seconds,
        }


class Listener:
    """Watches a run. The default hears everything and does nothing; a terminal or Prefect overrides what it shows."""

    def started(self, decision: Decision) -> None:
        """A stage is about to work."""

    def progressed(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """`done` of `total` units of a stage's work are done; `numbers` are what is worth seeing now."""

    def finished(self, decision: Decision, artifact: Artifact | None) -> None:
        """A stage is over: made, reused or skipped."""


@dataclass
class Context(Generic[C]):
    """All that a running stage may see.

    Attributes:
        inputs: sealed artifacts of the stages above, by stage name; a skipped stage is absent.
        work: the folder to write the artifact into; files of an interrupted attempt are still there.
        metrics: headline numbers for the manifest, flat.
        fresh: whether the stage was forced: what earlier attempts and other artifacts hold must not be taken over.
        bound: what the stage's `binds` found when its key was made; it may have changed since.
        borrowed: identities of the configs of stages that are skipped, by stage name; see `Stage.borrows`.
    """

    stage: str
    config: C
    inputs: Mapping[str, Artifact]
    work: Path
    runtime: Runtime
    sources: Sources
    listener: Listener
    metrics: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    bound: Mapping[str, Any] = field(default_factory=dict)
    borrowed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def log(self) -> logging.Logger:
        """The stage's logger, `dpo.<stage>`."""
        return logging.getLogger(f"dpo.{self.stage}")

    def progress(self, done: int, total: int, **numbers: float) -> None:
        """Tells whoever watches how far the stage is."""
        self.listener.progressed(self.stage, done, total, numbers)

    def hand_down(self, **values: Any) -> None:
        """Seals values for the stages below, which read them as `Artifact.handed_down`.

        They become a file of the artifact. So when one of them changes the stages below run again, which a config or
        metric in the manifest would not make them do: only content is hashed into their keys.
        """
        (self.work / HANDED_DOWN).write_text(json.dumps(values, indent=1) + "\n", "utf-8")

    def record(self, **numbers: Any) -> None:
        """Adds headline numbers to the manifest."""
        self.metrics.update(numbers)


class Runs(Protocol[C]):
    """A stage's work: reads inputs, writes files below `ctx.work`, records numbers."""

    def __call__(self, ctx: Context[C], /) -> None: ...


@dataclass(frozen=True)
class Stage(Generic[C]):
    """One stage of the pipeline.

    Attributes:
        version: raised by hand when the same config and inputs come to mean another artifact.
        inputs: names of the stages whose artifacts it may read.
        needs: those of `inputs` that it reads under this config; the others then change nothing for it.
        sources: identities of what the config names outside the project; hashed with the config.
        check: raises ConfigError where its config does not go together with those of all stages, by name.
        skip: the reason not to run at all under this config and those of all stages, by name, or None.
        borrows: names of stages whose config stands in for their artifact where they skip themselves: it is hashed with
            this stage's own then, and only then.
        keeps: the root it is stored under, `data` for what came from outside.
        binds: what besides changes the result under this config, found in the runtime and, once the inputs are sealed,
            by what they are; it becomes part of the key.
        resumes: whether an interrupted attempt left something in its work folder to go on from. Cheap, never fails.
        apply: what follows from its artifact outside of it, done each time the artifact was made or reused and its
            files are there. Doing it again changes nothing.
    """

    name: str
    config: type[C]
    version: int
    run: Runs[C]
    inputs: tuple[str, ...] = ()
    sources: Callable[[C, Sources], Mapping[str, Any]] = lambda config, sources: {}
    check: Callable[[C, Mapping[str, Strict]], None] = lambda config, configs: None
    skip: Callable[[C, Mapping[str, Strict]], str | None] = lambda config, configs: None
    borrows: tuple[str, ...] = ()
    needs: Callable[[C], Sequence[str]] | None = None
    keeps: Literal["data", "artifacts"] = "artifacts"
    binds: Callable[[C, Runtime, Mapping[str, Artifact]], Mapping[str, Any]] = lambda config, runtime, inputs: {}
    resumes: Callable[[Path], bool] = lambda work: False
    apply: Callable[[C, Artifact, Runtime], None] | None = None

    def inputs_under(self, config: C) -> Sequence[str]:
        """The stages whose artifacts it reads under this config."""
        return self.needs(config) if self.needs else self.inputs
