"""One run over the stages: what each will do and why (`decide`), and doing it (`run`). The one place that skips."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.config import Settings, Strict
from engine.environment import environment
from engine.errors import ConfigError, MissingInputError, PipelineError, StoreError, TransientError
from engine.fingerprint import digest
from engine.keys import nearest
from engine.reasons import why_run
from engine.sources import Sources, Unresolved
from engine.stage import Context, Decision, Listener, Stage
from engine.store import Artifact, Store

_HELD = "being made right now by "
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
                raise ConfigError(
                    f"there is no stage `{name}`{nearest(name, stages)}", expected=f"one of {', '.join(stages)}"
                )
        if self.only is not None:
            if self.since is not None or self.until is not None:
                raise ConfigError("--only cannot be combined with --from or --until")
            return [self.only]
        first = stages.index(self.since) if self.since else 0
        last = stages.index(self.until) if self.until else len(stages) - 1
        if first > last:
            raise ConfigError(f"nothing lies from `{self.since}` until `{self.until}`", expected=" → ".join(stages))
        return list(stages[first : last + 1])

    def arguments(self) -> list[str]:
        """The words of the command `dpo` that select the same."""
        named = {"--only": self.only, "--from": self.since, "--until": self.until}
        words = [word for option, name in named.items() if name is not None for word in (option, name)]
        return [*words, "--force"] if self.force else words


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
        self._remembered = Sources(runtime.data, network=False)  # a stage that does not run asks nobody
        self._located = False

    def plan(self) -> list[Decision]:
        """What every stage would do, in order; runs nothing and remembers what it found for `artifacts`."""
        for stage in self.stages.values():
            self._settle(self.decide(stage))
        return list(self.decisions.values())

    def decide(self, stage: Stage[Any]) -> Decision:
        """What one stage would do now, given what became of the stages above it. Changes nothing.

        Raises:
            MissingInputError: it is not selected, a selected stage needs it, and it is not sealed.
        """
        reason = stage.skip(self._config(stage))
        if reason:
            return Decision(stage.name, "skip", reason)
        if stage.name not in self._needed:
            return Decision(stage.name, "skip", "not selected")
        identity = self._identify(stage)
        sealed, broken = self._look(stage, identity.key)
        if stage.name not in self._selected:
            if sealed is None:
                raise self._missing(stage, broken or self._why(stage, identity))
            return _reused(sealed)
        if identity.key is None:
            return Decision(stage.name, "run", identity.unknown)
        if sealed and self.selection.force:
            return Decision(stage.name, "run", "forced", identity.key, seconds=_seconds(sealed))
        if sealed:
            return _reused(sealed)
        holder = self._store(stage).holder(stage.name, identity.key)
        if holder:
            return Decision(stage.name, "run", _HELD + holder, identity.key)
        return self._unmade(stage, identity, broken)

    def _unmade(self, stage: Stage[Any], identity: _Identity, broken: str = "") -> Decision:
        """What is done where nothing is sealed and nobody else is at work."""
        left = self._store(stage).work_folder(stage.name, identity.key or "")
        if not self.selection.force and stage.resumes(left):
            return Decision(stage.name, "resume", "an earlier attempt was interrupted", identity.key)
        return Decision(stage.name, "run", broken or self._why(stage, identity), identity.key)

    def run(self, stage: Stage[Any]) -> Decision:
        """Makes, reuses or skips one stage, as `decide` says.

        Before the first stage works, what all of them name outside the project is looked for.

        Raises:
            PipelineError: the stage's own error, or one of the store.
        """
        decision = self.decide(stage)
        if decision.action in ("run", "resume"):
            self._locate()
            decision = self._make(stage, decision)
        self._settle(decision)
        self.listener.finished(decision, self.artifacts.get(stage.name))
        return decision

    def _locate(self) -> None:
        if self._located:
            return
        for stage in self.stages.values():
            if stage.name in self._selected and not stage.skip(self._config(stage)):
                with contextlib.suppress(Unresolved, TransientError):  # it asks again when its turn has come
                    stage.sources(self._config(stage), self._sources)
        self._located = True

    def _make(self, stage: Stage[Any], decision: Decision) -> Decision:
        identity, store = self._identify(stage), self._store(stage)
        if identity.key is None:
            raise StoreError(f"{stage.name} has no key: {identity.unknown}")
        with store.locked(stage.name, identity.key, self.settings.runtime.lock_wait_seconds):
            made_meanwhile = self._sound(stage, identity.key)
            if made_meanwhile and not self.selection.force:
                return dataclasses.replace(_reused(made_meanwhile), why="another run made it meanwhile")
            if decision.why.startswith(_HELD):  # whoever it was made nothing, and may have left something
                decision = self._unmade(stage, identity)
            self.listener.started(decision)
            context = self._context(stage, identity.key)
            began = time.monotonic()
            _run_guarded(stage, context)
            seconds = round(time.monotonic() - began, 3)
            artifact = store.seal(stage.name, identity.key, context.work, self._manifest(identity, context, seconds))
        return dataclasses.replace(decision, key=identity.key, path=artifact.path, seconds=seconds)

    def _context(self, stage: Stage[Any], key: str) -> Context[Any]:
        return Context(
            stage=stage.name,
            config=self._config(stage),
            inputs={name: self.artifacts[name] for name in self._inputs(stage) if name in self.artifacts},
            work=self._store(stage).work(stage.name, key, fresh=self.selection.force),
            runtime=self.settings.runtime,
            sources=self._sources,
            listener=self.listener,
        )

    def _manifest(self, identity: _Identity, context: Context[Any], seconds: float) -> dict[str, Any]:
        return {
            "payload": identity.payload,
            "metrics": context.metrics,
            "seconds": seconds,
            "sealed_at": time.strftime("%FT%T%z"),
            "profile": self.settings.profile,
            "environment": environment(),
        }

    def _look(self, stage: Stage[Any], key: str | None) -> tuple[Artifact | None, str]:
        """The sealed artifact under a key when its files are right; else what is wrong with it, or nothing."""
        artifact = self._store(stage).find(stage.name, key) if key else None
        problems = self._store(stage).verify(artifact) if artifact else []
        return (None, f"its artifact is broken: {'; '.join(problems)}") if problems else (artifact, "")

    def _sound(self, stage: Stage[Any], key: str) -> Artifact | None:
        """As `_look`, and a broken artifact goes to quarantine. Call it while holding the lock."""
        store = self._store(stage)
        artifact = store.find(stage.name, key)
        problems = store.verify(artifact) if artifact else []
        if artifact and problems:
            place = store.quarantine(artifact)
            _log.warning("%s %s is broken (%s); moved to %s", stage.name, key, "; ".join(problems), place)
            return None
        return artifact

    def _settle(self, decision: Decision) -> None:
        self.decisions[decision.stage] = decision
        if decision.path is not None and decision.key is not None:
            self.artifacts[decision.stage] = Artifact(decision.stage, decision.key, decision.path)
        else:
            self.artifacts.pop(decision.stage, None)

    def _identify(self, stage: Stage[Any]) -> _Identity:
        decided = [self.decisions[name] for name in self._inputs(stage) if name in self.decisions]
        above = [decision.stage for decision in decided if decision.action != "skip"]
        pending = [name for name in above if name not in self.artifacts]
        config = self._config(stage)
        asked = self._sources if stage.name in self._selected else self._remembered
        unresolved, sources = "", {}
        try:
            sources = dict(stage.sources(config, asked))  # a location that is wrong is an error even where it waits
        except Unresolved as unknown:
            unresolved = str(unknown)
        if pending:
            return _Identity(None, f"its input {', '.join(pending)} will be made first")
        if unresolved:
            return _Identity(None, unresolved)
        bound = dict(stage.binds(config, self.settings.runtime))
        payload = {
            "stage": stage.name,
            "version": stage.version,
            "config": config.identity(),
            "inputs": {name: self.artifacts[name].digest for name in above},
            "sources": sources,
        }
        return _Identity(payload | {"runtime": bound} if bound else payload)

    def _why(self, stage: Stage[Any], identity: _Identity) -> str:
        if identity.payload is None:
            return identity.unknown
        return why_run(stage.name, identity.payload, self._store(stage).all(stage.name))

    def _missing(self, stage: Stage[Any], found: str) -> MissingInputError:
        wanted = next(name for name in self.stages if name in self._selected and stage.name in self._above(name))
        last = [name for name in self.stages if name in self._above(wanted) - self._selected][-1]
        return MissingInputError(
            f"{wanted} needs the artifact of {stage.name}, and it is not there",
            found=found,
            where=str(self._store(stage).root / stage.name),
            fix=self.settings.command("run", "--until", last),
        )

    def _above(self, name: str) -> set[str]:
        direct = set(self._inputs(self.stages[name]))
        return direct | {above for parent in direct for above in self._above(parent)}

    def _inputs(self, stage: Stage[Any]) -> Sequence[str]:
        return stage.inputs_under(self._config(stage))

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
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        raise StoreError(
            f"{stage.name} could not read or write a file",
            found=str(error),
            where=str(getattr(error, "filename", None) or context.work),
            fix="check the disk's free space and the folder's permissions, then run again: finished stages are kept",
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    from safetensors import SafetensorError  # what a full disk is to a model that is saved

    named = isinstance(error, OSError) and (error.filename is not None or error.errno is not None)
    return named or isinstance(error, SafetensorError)


def _reused(artifact: Artifact) -> Decision:
    why = "nothing it depends on changed"
    return Decision(artifact.stage, "reuse", why, artifact.key, artifact.path, _seconds(artifact))


def _seconds(artifact: Artifact) -> float | None:
    try:
        return float(artifact.manifest["seconds"])
    except (StoreError, KeyError, TypeError):
        return None
