"""One run over the stages: doing what a plan decides, stage by stage."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from engine.artifact import Artifact
from engine.config import Settings
from engine.environment import environment
from engine.errors import StoreError, TransientError
from engine.guarding import run_guarded
from engine.plan import FORCED, HELD, WORKING, Identity, Plan, reused
from engine.secrets import redacted
from engine.selection import Selection
from engine.sources import Unresolved
from engine.stage import Context, Decision, Listener, Stage

__all__ = ["Pipeline", "Selection"]

_log = logging.getLogger("dpo")


class Pipeline(Plan):
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
        super().__init__(stages, settings, selection, network=network)
        self.listener = listener or Listener()
        self._located = False

    def run(self, stage: Stage[Any]) -> Decision:
        """Makes, reuses or skips one stage, as `decide` says.

        Before the first stage works, what all of them name outside the project is looked for.

        Raises:
            PipelineError: the stage's own error, or one of the store.
        """
        decision = self.decide(stage)
        if decision.action in WORKING:
            self._locate()
            decision = self._make(stage, decision)
        self._settle(decision)
        artifact = self.artifacts.get(stage.name)
        if artifact and artifact.pruned:
            artifact = None
        if artifact and stage.apply and decision.action != "skip":
            stage.apply(self._config(stage), artifact, self.settings.named_runtime)
        self.listener.finished(decision, artifact)
        return decision

    def _locate(self) -> None:
        if self._located:
            return
        for stage in self.stages.values():
            if stage.name in self._selected and not self._skipped(stage):
                with contextlib.suppress(Unresolved, TransientError):  # it asks again when its turn has come
                    stage.sources(self._config(stage), self._sources)
        self._located = True

    def _make(self, stage: Stage[Any], decision: Decision) -> Decision:
        identity, store = self._identify(stage), self._store(stage)
        if identity.key is None:
            raise StoreError(f"{stage.name} has no key: {identity.unknown}")
        with store.locked(stage.name, identity.key, self.settings.runtime.lock_wait_seconds) as waited_for:
            made_meanwhile = self._sound(stage, identity.key)
            if made_meanwhile and not self.selection.force:
                return self._taken_over(made_meanwhile, waited_for)
            decision = self._decide_alone(stage, identity, decision, made_meanwhile)
            context = self._context(stage, identity, decision)
            self.listener.started(decision)
            began = time.monotonic()
            run_guarded(stage, context)
            seconds = round(time.monotonic() - began, 3)
            self._recheck_inputs(stage, identity)
            artifact = store.seal(stage.name, identity.key, context.work, self._manifest(identity, context, seconds))
        return dataclasses.replace(decision, key=identity.key, path=artifact.path, seconds=seconds)

    def _taken_over(self, made: Artifact, waited_for: str | None) -> Decision:
        why = "another run made it meanwhile"
        if waited_for:
            _log.info("%s %s was made by %s; it is reused", made.stage, made.key, waited_for)
            why = f"{why}: {waited_for}"
        return reused(made, why)

    def _decide_alone(
        self, stage: Stage[Any], identity: Identity, planned: Decision, sealed: Artifact | None
    ) -> Decision:
        """The decision once its lock is held: whoever held it may have left something, or taken up what was left."""
        if sealed:
            return self._unmade(stage, identity, FORCED)
        stands = planned.action == "run" and not planned.why.startswith((HELD, FORCED))
        return self._unmade(stage, identity, planned.why if stands else "")

    def _recheck_inputs(self, stage: Stage[Any], identity: Identity) -> None:
        """Sees to it that the stage has read what its key says. If not, nothing that it left is gone on with.

        Raises:
            TransientError: an input was replaced while the stage worked, or is gone; another attempt takes the new one.
        """
        wanted = identity.payload["inputs"] if identity.payload else {}
        for name, expected in wanted.items():
            again = dataclasses.replace(self.artifacts[name])  # without what it remembers of its manifest
            if again.readable and again.digest == expected:
                continue
            if again.readable:
                self.artifacts[name] = again
            self._store(stage).work(stage.name, identity.key or "", fresh=True)
            raise TransientError(
                f"the input {name} {'was made anew' if again.readable else 'went'} while {stage.name} was at work",
                expected=f"content {expected[:16]}",
                found=f"content {again.digest[:16]}" if again.readable else "",
                where=str(again.path),
                fix="run again",
            )

    def _context(self, stage: Stage[Any], identity: Identity, decision: Decision) -> Context[Any]:
        inputs = {name: self.artifacts[name] for name in self._inputs(stage) if name in self.artifacts}
        for name, artifact in inputs.items():
            if artifact.pruned:  # what was planned no longer holds: an artifact below it was lost since
                raise StoreError(
                    f"{stage.name} has to read the files of {name}, and only its manifest is kept",
                    where=str(artifact.path),
                    fix="run again: it is made anew then",
                )
        store, resumed = self._store(stage), decision.action == "resume"
        fresh = self.selection.force and not resumed
        forced = fresh or (resumed and self._was_forced(stage, identity))
        payload = redacted(identity.payload)
        return Context(
            stage=stage.name,
            config=self._config(stage),
            inputs=inputs,
            work=store.work(stage.name, identity.key or "", fresh=fresh, payload=payload, forced=forced),
            runtime=self.settings.named_runtime,
            sources=self._sources,
            listener=self.listener,
            fresh=fresh,
            bound=(identity.payload or {}).get("runtime", {}),
            borrowed=(identity.payload or {}).get("borrowed", {}),
        )

    def _manifest(self, identity: Identity, context: Context[Any], seconds: float) -> dict[str, Any]:
        return {
            "payload": redacted(identity.payload),  # the key was made of the values themselves
            "metrics": context.metrics,
            "seconds": seconds,
            "sealed_at": time.strftime("%FT%T%z"),
            "profile": redacted(self.settings.profile),
            "environment": environment(),
        }

    def _sound(self, stage: Stage[Any], key: str) -> Artifact | None:
        """The sealed artifact under a key; a broken one goes to quarantine. Call it while holding the lock."""
        store = self._store(stage)
        artifact = store.find(stage.name, key)
        problems = store.verify(artifact) if artifact else []
        if artifact and problems:
            place = store.quarantine(artifact)
            _log.warning("%s %s is broken (%s); moved to %s", stage.name, key, "; ".join(problems), place)
            return None
        return artifact
