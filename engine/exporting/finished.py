"""A finished model found again, to be exported or talked to: the one in service, another version, or that of a run."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from engine.artifact import Artifact
from engine.config import Runtime
from engine.errors import MissingInputError, ModelError, PipelineError, StoreError
from engine.promotion.given import changed_since, pinned
from engine.promotion.incumbent import Incumbent, Unavailable
from engine.promotion.pointer import STAGE
from engine.promotion.service import Service
from engine.promotion.versions import Versions
from engine.runs import RunRecord, all_runs
from engine.sources import ModelSource, Sources
from engine.stage import Context, Listener
from engine.store import Store

if TYPE_CHECKING:
    from engine.evaluation.subject import Subject

_HOW = ("dtype", "attention", "quantization")
_LENT = (
    "reference",
    "train",
    "evaluate",
)  # of what made it: wanted where it is still there, and done without where it is not


@dataclass(frozen=True)
class Finished:
    """A model that was trained here, with all that it takes to run it.

    Attributes:
        name: what it is called in sentences: a version, or a run.
        version: key of its promote artifact; empty where it was not judged.
        inputs: its sealed artifacts by stage, whole when they were looked at: `tokenize`, `subsample`, `sft` unless a
            policy was given, and under `train` the one that holds its `adapter/`.
        model: what it was made from; names on the Hub at the commits that they stood for.
        given: identities of a policy that was given, else empty.
        how: `dtype`, `attention` and `quantization` that it was trained under.
        lent: `reference`, `train` and `evaluate`, as far as their artifacts are left.
        verdict: what the gate said of it: `promote`, `keep`, or nothing where it was not asked yet.
        runtime: where it runs.
    """

    name: str
    version: str
    inputs: Mapping[str, Artifact]
    model: ModelSource
    given: Mapping[str, Any]
    how: Mapping[str, str]
    lent: Mapping[str, Artifact]
    verdict: str
    runtime: Runtime

    @classmethod
    def in_service(cls, runtime: Runtime, again: str) -> Self:
        """The model in service.

        Args:
            runtime: as `Settings.named_runtime` has it.
            again: the command that makes one.

        Raises:
            MissingInputError: none is in service.
            StoreError: it cannot be told which one is, or something of it is gone or broken.
        """
        version = Service.of(runtime).current()
        if version is None:
            raise MissingInputError(
                "there is no model in service yet",
                where=str(runtime.artifacts),
                fix=f"{again}; one that the gate kept back is named by --run or --version",
            )
        return cls.of_version(version, runtime)

    @classmethod
    def of_version(cls, version: str, runtime: Runtime, name: str = "") -> Self:
        """A version, in service or not. Raises StoreError: there is none, or something of it is gone or broken."""
        record = Versions(runtime.artifacts).record(version)
        try:
            found = Incumbent.find(version, runtime)
        except Unavailable as error:
            raise _unusable(f"version {version}", str(error), runtime.artifacts) from None
        lent = _lent(Store(runtime.artifacts), record["stages"])
        return cls(
            name=name or f"version {version}",
            version=version,
            inputs=found.inputs,
            model=found.model,
            given=found.given,
            how=found.how,
            lent=lent,
            verdict=str(record.get("verdict", "")),
            runtime=runtime,
        )

    @classmethod
    def of_run(cls, run: str, runtime: Runtime) -> Self:
        """What a run trained, whatever the gate said of it.

        Raises:
            StoreError: there is no such run, it trained nothing, or something of it is gone or broken.
        """
        record = _record(run, runtime.artifacts)
        judged = record.artifact(STAGE)
        if judged is not None and Store(runtime.artifacts).find(STAGE, judged.key):
            return cls.of_version(judged.key, runtime, f"run {run}")
        try:
            return cls._unjudged(record, runtime)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise _unusable(f"run {run}", f"its record does not tell: {error!r:.200}", record.folder) from None

    @classmethod
    def _unjudged(cls, record: RunRecord, runtime: Runtime) -> Self:
        """Of a run that was not judged: what its train stage left."""
        made = {stage: record.artifact(stage) for stage in ("tokenize", "subsample", "sft", *_LENT)}
        trained = made["train"]
        if trained is None:
            raise StoreError(
                f"run {record.id} left no trained adapter",
                found=f"it {record.state}, or what it made was removed",
                where=str(record.folder),
                fix="dpo run makes it, from where it stopped",
            )
        model = ModelSource.model_validate(record.config["model"])
        content = trained.manifest["payload"]["sources"]
        given = {role: content[role] for role in ("policy", "base") if role in content} if model.policy else {}
        scored = made["reference"].handed_down if made["reference"] else {}
        needed = {stage: made[stage] for stage in ("tokenize", "subsample", "train")}
        needed |= {} if given else {"sft": made["sft"]}
        how: Mapping[str, Any] = trained.handed_down.get("how", scored)
        return cls(
            name=f"run {record.id}",
            version="",
            inputs=_whole(needed, record, Store(runtime.artifacts)),
            model=pinned(model, given),
            given=given,
            how={name: str(how[name]) for name in _HOW},
            lent={stage: found for stage in _LENT if (found := made[stage]) is not None},
            verdict="",
            runtime=runtime,
        )

    def context(self) -> Context[Any]:
        """What loading and scoring ask of a stage; nothing is written through it."""
        sources = Sources(self.runtime.data, network=True)
        return Context("export", None, self.inputs, Path(), self.runtime, sources, Listener())

    def open(self, *, quantization: str = "") -> "Subject":
        """Loads it; it takes a whole model's memory.

        Args:
            quantization: another one than it was trained under.

        Raises:
            ModelError: it cannot be loaded, or the policy that was given has other content by now.
            ConfigError: its weights were quantised and cannot be here.
            TransientError: the Hub did not answer.
        """
        from engine.evaluation.subject import Subject

        # transformers is about to rename a property that is asked for here.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        ctx = self.context()
        if changed := changed_since(self.model, self.given, ctx.sources):
            raise ModelError(
                f"the policy that {self.name} starts from is gone or has other content than when it was trained",
                where=changed,
                fix="put it back as it was",
            )
        how = {**self.how, **({"quantization": quantization} if quantization else {})}
        return Subject.open(ctx, self.inputs, self.model, how)


def _record(run: str, root: Path) -> RunRecord:
    folders = {folder.name: folder for folder in all_runs(root)}
    if run not in folders:
        latest = ", ".join(list(folders)[:5]) or "there are none"
        raise StoreError(f"there is no run `{run}`", expected=f"an id; the latest: {latest}", where=str(root))
    return RunRecord.load(folders[run])


def _whole(needed: Mapping[str, Artifact | None], record: RunRecord, store: Store) -> dict[str, Artifact]:
    """The artifacts, every byte as it was sealed. Raises StoreError."""
    whole: dict[str, Artifact] = {}
    for stage, artifact in needed.items():
        problems = ["it is gone"] if artifact is None else store.verify(artifact)
        if artifact is None or problems:
            raise _unusable(f"run {record.id}", f"{stage}: {problems[0]}", record.folder)
        whole[stage] = artifact
    return whole


def _lent(store: Store, keys: Mapping[str, Any]) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for stage in _LENT:
        try:
            artifact = store.find(stage, str(keys[stage])) if keys.get(stage) else None
        except PipelineError:
            continue
        if artifact is not None:
            found[stage] = artifact
    return found


def _unusable(name: str, found: str, where: Path) -> StoreError:
    fix = "make it again with `dpo run` under its configuration, or name another: `dpo promoted` lists the versions"
    return StoreError(f"{name} cannot be used", found=found, where=str(where), fix=fix)
