"""What each stage would do under one configuration, and why: `decide`. The one place that skips."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.artifact import Artifact
from engine.attempts import Attempt
from engine.config import Settings, Strict
from engine.errors import DataError, MissingInputError, StoreError
from engine.fingerprint import digest
from engine.reasons import Nearest, why_run
from engine.secrets import redacted
from engine.selection import Selection
from engine.sources import Sources, Unresolved
from engine.stage import Decision, Stage
from engine.store import Store

HELD, FORCED = "being made right now by ", "forced"
WORKING = ("run", "resume")


@dataclass(frozen=True)
class Identity:
    """What a stage's artifact is keyed by, or why that cannot be told yet."""

    payload: dict[str, Any] | None
    unknown: str = ""

    @property
    def key(self) -> str | None:
        """16 hexadecimal digits over the payload; None where that is not known."""
        return digest(self.payload)[:16] if self.payload else None


@dataclass(frozen=True)
class Explanation:
    """Why a stage would do what it would do.

    Attributes:
        chain: its own decision, then that of a stage above it that has to run first, and so on up to the first cause.
        nearest: what was made of the first cause that is most similar to what is wanted, with every difference; None
            when nothing was made, when it is skipped, and when its key cannot be told.
    """

    chain: list[Decision]
    nearest: Nearest | None


class Plan:
    """The stages under one configuration and selection, and what was decided on each so far.

    Raises:
        ConfigError: the configs of two stages do not go together.
    """

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        settings: Settings,
        selection: Selection | None = None,
        *,
        network: bool = False,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.settings = settings
        self.selection = selection or Selection()
        self.decisions: dict[str, Decision] = {}
        self.artifacts: dict[str, Artifact] = {}
        for stage in stages:
            stage.check(settings.stages[stage.name], settings.stages)
        self._selected = set(self.selection.names(list(self.stages)))
        self._goals = self._selected - self._read_by_selected()
        self._needed = self._selected | {above for name in self._selected for above in self._above(name)}
        runtime = settings.runtime
        self._stores = {"data": Store(runtime.data), "artifacts": Store(runtime.artifacts)}
        self._sources = Sources(runtime.data, network=network)
        self._remembered = Sources(runtime.data, network=False)  # a stage that does not run asks nobody
        self._read: dict[str, str] | None = None  # while looking ahead: stages whose files are read, and why

    def plan(self) -> list[Decision]:
        """What every stage would do, in order; runs nothing and remembers what it found for `artifacts`."""
        for stage in self.stages.values():
            self._settle(self.decide(stage))
        return list(self.decisions.values())

    def decide(self, stage: Stage[Any]) -> Decision:
        """What one stage would do now, given what became of the stages above it. Changes nothing.

        A stage whose files were removed and whose manifest is kept is reused as long as nothing has to read them; those
        of a selected stage that no other selected one reads are what was asked for.

        Raises:
            MissingInputError: it is not selected, a selected stage needs it, and it is not sealed.
        """
        if reason := self._skipped(stage):
            return Decision(stage.name, "skip", reason)
        if stage.name not in self._needed:
            return Decision(stage.name, "skip", "not selected")
        identity, forced = self._identify(stage), self.selection.force and stage.name in self._selected
        sealed, lost = self._look(stage, identity.key)
        if sealed and not forced:
            return reused(sealed)
        if sealed:
            return dataclasses.replace(self._unsealed(stage, identity, FORCED), seconds=_seconds(sealed))
        kept = self._store(stage).pruned(stage.name, identity.key) if identity.key and not (lost or forced) else None
        if kept:
            reader = _ASKED_FOR if stage.name in self._goals else self._reader_of(stage)
            if not reader:
                return Decision(stage.name, "reuse", _KEPT, identity.key, seconds=_seconds(kept))
            lost = f"only its manifest is kept, and {reader}"
        if stage.name not in self._selected:
            raise self._missing(stage, lost or self._why(stage, identity), removed=kept is not None)
        return self._unsealed(stage, identity, lost)

    def explain(self, name: str) -> Explanation:
        """Why a stage would do what `plan` decided, up to the first cause. Call it after `plan`."""
        chain = [self.decisions[name]]
        while chain[-1].action == "run" and chain[-1].key is None:
            pending = self._pending(self.stages[chain[-1].stage])
            if not pending:
                break
            chain.append(self.decisions[pending[0]])
        cause = self.stages[chain[-1].stage]
        payload = self._identify(cause).payload if chain[-1].action != "skip" else None
        return Explanation(chain, Nearest.to(redacted(payload), self._made(cause)) if payload else None)

    def _unsealed(self, stage: Stage[Any], identity: Identity, lost: str) -> Decision:
        if identity.key is None:
            return Decision(stage.name, "run", identity.unknown)
        holder = self._store(stage).holder(stage.name, identity.key)
        if holder:
            return Decision(stage.name, "run", HELD + holder, identity.key)
        return self._unmade(stage, identity, lost)

    def _unmade(self, stage: Stage[Any], identity: Identity, lost: str = "") -> Decision:
        """What is done where nothing that is sealed serves and nobody else is at work.

        By force an attempt is gone on with only if it was forced itself: another may have taken over what is doubted.
        """
        if stage.resumes(self._store(stage).work_folder(stage.name, identity.key or "")):
            if not self.selection.force:
                return Decision(stage.name, "resume", "an earlier attempt was interrupted", identity.key)
            if self._was_forced(stage, identity):
                return Decision(stage.name, "resume", "an earlier forced attempt was interrupted", identity.key)
            lost = lost or FORCED
        return Decision(stage.name, "run", lost or self._why(stage, identity), identity.key)

    def _was_forced(self, stage: Stage[Any], identity: Identity) -> bool:
        left = self._store(stage).attempt(stage.name, identity.key or "")
        return left is not None and left.forced

    def _reader_of(self, stage: Stage[Any]) -> str:
        """Who below would run and has to read this one's files, in words; nothing when the manifest is enough.

        A stage that runs makes those below it run too, as far as anybody can tell before it has run, and they may read
        the files of further stages of which only a manifest is kept. So this looks ahead until nothing is added.
        """
        if self._read is not None:
            return self._read.get(stage.name, "")
        read: dict[str, str] = {}
        while found := self._readers(stage, read):
            read |= found
        return read.get(stage.name, "")

    def _readers(self, first: Stage[Any], read: dict[str, str]) -> dict[str, str]:
        """Stages that are not in `read`, of which only a manifest is kept, and who needs more if those in it run."""
        ahead = copy.copy(self)
        ahead.decisions, ahead.artifacts, ahead._read = dict(self.decisions), dict(self.artifacts), read
        names = list(self.stages)
        for name in names[names.index(first.name) :]:
            ahead._settle(ahead.decide(self.stages[name]))
        kept = {name for name, artifact in ahead.artifacts.items() if artifact.pruned and name not in read}
        working = [decision for decision in ahead.decisions.values() if decision.action in WORKING]
        return {
            name: f"{decision.stage} has to read its files ({decision.why})"
            for decision in working[::-1]  # so that the first has the last word
            for name in self._inputs(self.stages[decision.stage])
            if name in kept
        }

    def _look(self, stage: Stage[Any], key: str | None) -> tuple[Artifact | None, str]:
        """The sealed artifact under a key when its files are right; else what is wrong with it, or nothing."""
        artifact = self._store(stage).find(stage.name, key) if key else None
        problems = self._store(stage).verify(artifact) if artifact else []
        return (None, f"its artifact is broken: {'; '.join(problems)}") if problems else (artifact, "")

    def _settle(self, decision: Decision) -> None:
        self.decisions[decision.stage] = decision
        artifact = self._artifact(decision)
        if artifact:
            self.artifacts[decision.stage] = artifact
        else:
            self.artifacts.pop(decision.stage, None)

    def _artifact(self, decision: Decision) -> Artifact | None:
        if decision.key is None:
            return None
        if decision.path is not None:
            return Artifact(decision.stage, decision.key, decision.path)
        kept = decision.action == "reuse"
        return self._store(self.stages[decision.stage]).pruned(decision.stage, decision.key) if kept else None

    def _identify(self, stage: Stage[Any]) -> Identity:
        pending, config = self._pending(stage), self._config(stage)
        asked = self._sources if stage.name in self._selected else self._remembered
        unresolved, sources = "", {}
        try:
            sources = dict(stage.sources(config, asked))  # a location that is wrong is an error even where it waits
        except Unresolved as unknown:
            unresolved = str(unknown)
        except OSError as error:
            raise DataError(f"what {stage.name} takes from outside cannot be read", found=str(error)) from None
        if pending:
            return Identity(None, f"its input {', '.join(pending)} will be made first")
        if unresolved:
            return Identity(None, unresolved)
        inputs = {name: self.artifacts[name] for name in self._wired(stage)}
        bound = dict(stage.binds(config, self.settings.named_runtime, inputs))
        payload = {
            "stage": stage.name,
            "version": stage.version,
            "config": config.identity(),
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
            "sources": sources,
        }
        borrowed = self._borrowed(stage)
        return Identity(payload | ({"runtime": bound} if bound else {}) | ({"borrowed": borrowed} if borrowed else {}))

    def _wired(self, stage: Stage[Any]) -> list[str]:
        """The stages that it reads and that were not skipped, as far as they were decided on."""
        decided = [self.decisions[name] for name in self._inputs(stage) if name in self.decisions]
        return [decision.stage for decision in decided if decision.action != "skip"]

    def _pending(self, stage: Stage[Any]) -> list[str]:
        return [name for name in self._wired(stage) if name not in self.artifacts]

    def _why(self, stage: Stage[Any], identity: Identity) -> str:
        if identity.payload is None:
            return identity.unknown
        return why_run(redacted(identity.payload), self._made(stage))

    def _made(self, stage: Stage[Any]) -> list[Artifact | Attempt]:
        """What a rerun is told apart from: sealed artifacts, kept manifests, and attempts with something to lose."""
        store = self._store(stage)
        left = [each for each in store.attempts(stage.name) if stage.resumes(each.path)]
        return [*store.all(stage.name), *store.all_pruned(stage.name), *left]

    def _missing(self, stage: Stage[Any], found: str, *, removed: bool) -> MissingInputError:
        wanted = next(name for name in self.stages if name in self._selected and stage.name in self._above(name))
        last = [name for name in self.stages if name in self._above(wanted) - self._selected][-1]
        # Without the stage that reads them, a run has no reason to bring removed files back.
        words = [wanted, *(["--force"] if self.selection.force else [])] if removed else [last]
        return MissingInputError(
            f"{wanted} needs the artifact of {stage.name}, and it is not there",
            found=found,
            where=str(self._store(stage).root / stage.name),
            fix=self.settings.command("run", "--until", *words),
        )

    def _above(self, name: str) -> set[str]:
        direct = set(self._inputs(self.stages[name]))
        return direct | {above for parent in direct for above in self._above(parent)}

    def _read_by_selected(self) -> set[str]:
        """What the selected stages that are not skipped read."""
        working = [stage for name, stage in self.stages.items() if name in self._selected]
        return {above for stage in working if not self._skipped(stage) for above in self._inputs(stage)}

    def _skipped(self, stage: Stage[Any]) -> str | None:
        """Why a stage has nothing to do under this configuration, whatever was selected."""
        return stage.skip(self._config(stage), self.settings.stages)

    def _borrowed(self, stage: Stage[Any]) -> dict[str, dict[str, Any]]:
        """What a stage takes from the configs of those that skip themselves."""
        lenders = [self.stages[name] for name in stage.borrows if name in self.stages]
        return {lender.name: self._config(lender).identity() for lender in lenders if self._skipped(lender)}

    def _inputs(self, stage: Stage[Any]) -> Sequence[str]:
        return stage.inputs_under(self._config(stage))

    def _config(self, stage: Stage[Any]) -> Strict:
        return self.settings.stages[stage.name]

    def _store(self, stage: Stage[Any]) -> Store:
        return self._stores[stage.keeps]


_ASKED_FOR = "its files are what this run is for"
_KEPT = "nothing it depends on changed; only its manifest is kept, and nothing that runs reads its files"


def reused(artifact: Artifact, why: str = "nothing it depends on changed") -> Decision:
    """The decision to take an artifact as it is."""
    return Decision(artifact.stage, "reuse", why, artifact.key, artifact.path, _seconds(artifact))


def _seconds(artifact: Artifact) -> float | None:
    try:
        return float(artifact.manifest["seconds"])
    except (StoreError, KeyError, TypeError, ValueError):
        return None
