"""One run over the stages: what each will do and why (`decide`), and doing it (`run`). The one place that skips."""

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.config import Settings, Strict
from engine.errors import ConfigError, MissingInputError, PipelineError, StoreError
from engine.fingerprint import differences, digest
from engine.sources import Sources, Unresolved
from engine.stage import Context, Decision, Listener, Stage
from engine.store import Artifact, Store

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "pyarrow")
_log = logging.getLogger("dpo")


@dataclass(frozen=True)
class Selection:
    """Which stages of the pipeline a run is about. All of them by default.

    Attributes:
        only: this stage alone; its inputs must be sealed already.
        since: this stage and those below it.
        until: this stage and those above it.
        force: rebuild the selected stages even where their artifact is sealed.
    """

    only: str | None = None
    since: str | None = None
    until: str | None = None
    force: bool = False

    def names(self, stages: Sequence[str]) -> list[str]:
        """The selected stages, in order. Raises ConfigError for an unknown name or an empty selection."""
        for name in (self.only, self.since, self.until):
            if name is not None and name not in stages:
                raise ConfigError(f"there is no stage `{name}`", expected=f"one of {', '.join(stages)}")
        if self.only is not None:
            if self.since is not None or self.until is not None:
                raise ConfigError("--only cannot be combined with --from or --until")
            return [self.only]
        first = stages.index(self.since) if self.since else 0
        last = stages.index(self.until) if self.until else len(stages) - 1
        if first > last:
            raise ConfigError(f"nothing lies from `{self.since}` until `{self.until}`", expected=" → ".join(stages))
        return list(stages[first : last + 1])


@dataclass(frozen=True)
class _Identity:
    """What a stage's artifact is keyed by, or why that cannot be told yet."""

    payload: dict[str, Any] | None
    unknown: str = ""

    @property
    def key(self) -> str | None:
        return digest(self.payload)[:16] if self.payload else None


class Pipeline:
    """The stages under one configuration and selection, and what has become of each so far."""

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        settings: Settings,
        selection: Selection | None = None,
        listener: Listener | None = None,
        *,
        network: bool = True,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.settings = settings
        self.selection = selection or Selection()
        self.listener = listener or Listener()
        self.decisions: dict[str, Decision] = {}
        self.artifacts: dict[str, Artifact] = {}
        self._selected = set(self.selection.names(list(self.stages)))
        self._needed = self._selected | {above for name in self._selected for above in self._above(name)}
        runtime = settings.runtime
        self._stores = {"data": Store(runtime.data), "artifacts": Store(runtime.artifacts)}
        self._sources = Sources(runtime.data, network=network)

    def plan(self) -> list[Decision]:
        """What every stage would do, in order; runs nothing and remembers what it found for `artifacts`."""
        for stage in self.stages.values():
            self._settle(self.decide(stage))
        return list(self.decisions.values())

    def decide(self, stage: Stage[Any]) -> Decision:
        """What one stage would do now, given what became of the stages above it.

        Raises:
            MissingInputError: it is not selected, a selected stage needs it, and it is not sealed.
        """
        reason = stage.skip(self._config(stage))
        if reason:
            return Decision(stage.name, "skip", reason)
        if stage.name not in self._needed:
            return Decision(stage.name, "skip", "not selected")
        identity = self._identify(stage)
        sealed = self._store(stage).find(stage.name, identity.key) if identity.key else None
        if stage.name not in self._selected:
            if sealed is None:
                raise self._missing(stage, identity)
            return self._reuse(stage, sealed)
        if identity.key is None:
            return Decision(stage.name, "run", identity.unknown)
        if sealed and not self.selection.force:
            return self._reuse(stage, sealed)
        if self._store(stage).started(stage.name, identity.key) and not self.selection.force:
            return Decision(stage.name, "resume", "an earlier attempt was interrupted", identity.key)
        why = "forced" if sealed else self._why(stage, identity)
        seconds = _seconds(sealed) if sealed else None
        return Decision(stage.name, "run", why, identity.key, seconds=seconds)

    def run(self, stage: Stage[Any]) -> Decision:
        """Makes, reuses or skips one stage. Reused files are verified first; broken ones go to quarantine.

        Raises:
            PipelineError: the stage's own error, or one of the store.
        """
        decision = self.decide(stage)
        if decision.action == "reuse":
            decision = self._verified(stage, decision)
        if decision.action in ("run", "resume"):
            decision = self._make(stage, decision)
        self._settle(decision)
        self.listener.finished(decision, self.artifacts.get(stage.name))
        return decision

    def _make(self, stage: Stage[Any], decision: Decision) -> Decision:
        identity = self._identify(stage)
        if identity.key is None:
            raise StoreError(f"{stage.name} has no key: {identity.unknown}")
        store, force = self._store(stage), self.selection.force
        with store.locked(stage.name, identity.key, self.settings.runtime.lock_wait_seconds):
            made_meanwhile = store.find(stage.name, identity.key)
            if made_meanwhile and not force:
                return dataclasses.replace(self._reuse(stage, made_meanwhile), why="another run made it meanwhile")
            self.listener.started(decision)
            began = time.monotonic()
            context = Context(
                stage=stage.name,
                config=self._config(stage),
                inputs={name: self.artifacts[name] for name in stage.inputs if name in self.artifacts},
                work=store.work(stage.name, identity.key, fresh=force),
                runtime=self.settings.runtime,
                sources=self._sources,
                listener=self.listener,
            )
            _run_guarded(stage, context)
            seconds = round(time.monotonic() - began, 3)
            manifest = {
                "payload": identity.payload,
                "metrics": context.metrics,
                "seconds": seconds,
                "sealed_at": time.strftime("%FT%T%z"),
                "profile": self.settings.profile,
                "environment": _environment(),
            }
            artifact = store.seal(stage.name, identity.key, context.work, manifest)
        return dataclasses.replace(decision, key=identity.key, path=artifact.path, seconds=seconds)

    def _verified(self, stage: Stage[Any], decision: Decision) -> Decision:
        store = self._store(stage)
        artifact = store.find(stage.name, decision.key or "")
        problems = store.verify(artifact) if artifact else ["it is gone"]
        if not problems:
            return decision
        place = store.quarantine(artifact) if artifact else None
        _log.warning("%s %s is broken (%s); moved to %s", stage.name, decision.key, "; ".join(problems), place)
        if stage.name not in self._selected:
            raise self._missing(stage, self._identify(stage))
        return Decision(stage.name, "run", f"its artifact was broken: {'; '.join(problems)}", decision.key)

    def _settle(self, decision: Decision) -> None:
        self.decisions[decision.stage] = decision
        if decision.path is not None and decision.key is not None:
            self.artifacts[decision.stage] = Artifact(decision.stage, decision.key, decision.path)

    def _identify(self, stage: Stage[Any]) -> _Identity:
        above = [name for name in stage.inputs if self.decisions.get(name) and self.decisions[name].action != "skip"]
        pending = [name for name in above if name not in self.artifacts]
        if pending:
            return _Identity(None, f"its input {' and '.join(pending)} will be made first")
        config = self._config(stage)
        try:
            sources = dict(stage.sources(config, self._sources))
        except Unresolved as unknown:
            return _Identity(None, str(unknown))
        payload = {
            "stage": stage.name,
            "version": stage.version,
            "config": config.identity(),
            "inputs": {name: self.artifacts[name].digest for name in above},
            "sources": sources,
        }
        return _Identity(payload)

    def _why(self, stage: Stage[Any], identity: _Identity) -> str:
        changes = [
            differences(artifact.manifest["payload"], identity.payload) for artifact in self._store(stage).all(stage.name)
        ]
        if not changes:
            return "never made"
        return "; ".join(_change(*change) for change in min(changes, key=len)) or "its artifact is gone"

    def _reuse(self, stage: Stage[Any], artifact: Artifact) -> Decision:
        return Decision(stage.name, "reuse", "nothing it depends on changed", artifact.key, artifact.path, _seconds(artifact))

    def _missing(self, stage: Stage[Any], identity: _Identity) -> MissingInputError:
        wanted = ", ".join(name for name in self.stages if name in self._selected)
        return MissingInputError(
            f"{wanted} needs the artifact of {stage.name}, and it is not there",
            found=self._why(stage, identity) if identity.key else identity.unknown,
            where=str(self._store(stage).root / stage.name / (identity.key or "")),
            fix=f"dpo run --profile {self.settings.profile} --until {stage.name} (with the same --set as now)",
        )

    def _above(self, name: str) -> set[str]:
        direct = set(self.stages[name].inputs)
        return direct | {above for parent in direct for above in self._above(parent)}

    def _config(self, stage: Stage[Any]) -> Strict:
        return self.settings.stages[stage.name]

    def _store(self, stage: Stage[Any]) -> Store:
        return self._stores[stage.keeps]


def _run_guarded(stage: Stage[Any], context: Context[Any]) -> None:
    """Runs a stage; a full disk or a refused permission becomes an error that says what to do."""
    try:
        stage.run(context)
    except PipelineError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise StoreError(
            f"{stage.name} could not read or write a file",
            found=str(error),
            where=str(error.filename or context.work),
            fix="check the disk's free space and the folder's permissions, then run again: finished stages are kept",
        ) from error


def _change(name: str, old: object, new: object) -> str:
    area, _, rest = name.partition(".")
    if area == "inputs":
        return f"input {rest} has other content" if old and new else f"input {rest} is {'new' if new else 'gone'}"
    if area == "sources":
        return f"{rest} has other content"
    if area == "version":
        return f"the stage's code went from version {old} to {new}"
    return f"{rest or name}: {_shown(old)} → {_shown(new)}"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _seconds(artifact: Artifact) -> float | None:
    try:
        return float(artifact.manifest["seconds"])
    except (StoreError, KeyError, TypeError):
        return None


def _environment() -> Mapping[str, str]:
    found = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
