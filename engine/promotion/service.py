"""Switching the model in service, below `<artifacts>/promoted/<name>/`, so that readers never see half.

`state.json` is the truth, and replaced as a whole. The link `current` leads to the promote artifact of the version in
service for readers who know nothing of this; it is switched by a rename, right after, and mended from the state at the
next occasion where a kill came between. So a reader that resolves it once reads the old model or the new, whole.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from engine.artifact import Artifact
from engine.config import Runtime
from engine.errors import PipelineError, StoreError
from engine.files import sync, write_atomically
from engine.locks import LockFolderError, holding
from engine.promotion.given import changed_since, pinned
from engine.promotion.pointer import CURRENT, PROMOTED, STAGE, STATE, Pointer, names, target
from engine.promotion.state import Action, Event, State
from engine.promotion.versions import Versions
from engine.sources import ModelSource, Sources, Unresolved

NO_WAY_BACK = "make it again with `dpo run` under its configuration, or put another there: dpo promote --force"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}

Offer = Literal["promoted", "in service", "was in service"]


def services(root: Path) -> list["Service"]:
    """Every service below a root of artifacts. Raises StoreError where the folder cannot be read."""
    return [Service(root, name) for name in names(root)]


class Service(Pointer):
    """What is in service under one name below one root of artifacts."""

    def __init__(self, root: Path, name: str, wait_seconds: float = 60.0) -> None:
        super().__init__(root, name)
        self._versions = Versions(root)
        self._wait_seconds = wait_seconds

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """The one of a profile, from the runtime that `Settings.named_runtime` has."""
        return cls(runtime.artifacts, runtime.service)

    def artifact(self, version: str) -> Artifact:
        """A version, sealed; or what is left of it, its manifest. Raises StoreError where there is neither."""
        return self._versions.find(version)

    def parts(self) -> set[tuple[str, str]]:
        """Stage and key of the versions that must stay, and of what each of them was made of. Raises StoreError."""
        kept = self.kept()
        return {(STAGE, version) for version in kept} | {part for each in kept for part in self._versions.made_of(each)}

    def problems(self, version: str) -> list[str]:
        """Why a version cannot serve, in words: it, its policy or its tokenizer is gone or broken; empty if it can.

        A policy that was given counts too; where only the network could tell of it, it passes.
        """
        sealed = self._versions.problems(version)
        return sealed or self._problems_of_given(version)

    def fallback(self) -> str | None:
        """The version that going back leads to which can serve, the latest; None where there is none.

        First those that stand below the one in service, then all that ever were there. Raises StoreError as `state`.
        """
        state = self.state()
        before = [*reversed(state.standing[:-1]), *(event.version for event in reversed(state.events))]
        others = [version for version in dict.fromkeys(before) if version != state.current]
        return next((version for version in others if not self.problems(version)), None)

    def way_back(self) -> str:
        """What can be done where the version in service cannot serve, in words. Raises StoreError as `state`."""
        version = self.fallback()
        return f"`dpo rollback --to {version}` under a profile of service {self.name}" if version else NO_WAY_BACK

    def offer(self, version: str, run: str = "") -> Offer:
        """Puts a version that passed the gate into service, unless its model is or was there.

        What was in service and is no longer was replaced or taken back by somebody, which a run must not undo.

        Raises:
            StoreError, TransientError: see `put`.
        """
        with self._locked() as state:
            candidate = str(self._versions.record(version)["candidate"])
            if state.first(candidate) and not state.serves(candidate):
                self._point(state)
                return "was in service"
            return "promoted" if self._put(state, version, "promoted", run) else "in service"

    def put(self, version: str, run: str = "", *, forced: bool = False) -> Event | None:
        """Puts a version into service. Returns the switch; None where its model is in service already, and can serve.

        Args:
            forced: also where another model is in service than the one it was held against.

        Raises:
            StoreError: it cannot serve; or the model in service is no longer the one it was held against.
            TransientError: another process is switching.
        """
        with self._locked() as state:
            return self._put(state, version, "forced" if forced else "promoted", run)

    def rollback(self, to: str | None = None, run: str = "") -> Event:
        """Puts the version into service that was there before, or one that was there at any time. Returns the switch.

        Raises:
            StoreError: there is none before, it never was in service, it is there now, or it cannot serve.
            TransientError: another process is switching.
        """
        with self._locked() as state:
            version = _chosen(state, to, self.folder)
            self._check(version)
            return self._switch(state, version, "rolled back", run)

    def repair(self) -> None:
        """Has the link lead to the version in service. Raises StoreError, TransientError."""
        if not self.is_pointed():
            with self._locked() as state:
                self._point(state)

    def _put(self, state: State, version: str, action: Action, run: str) -> Event | None:
        record = self._versions.record(version)
        serves = state.serves(record["candidate"])
        if serves and (version == state.current or not self.problems(str(state.current))):
            self._point(state)
            return None
        if action == "promoted" and not serves and record["against"] != state.current:
            raise StoreError(
                "the model in service changed since this one was judged",
                expected=f"the one it was held against: {record['against'] or 'none'}",
                found=state.current or "none",
                where=str(self.folder / STATE),
                fix="run again: it is held against the one in service now",
            )
        self._check(version)
        return self._switch(state, version, action, run)

    def _check(self, version: str) -> None:
        if problems := self.problems(version):
            raise StoreError(
                f"version {version} cannot be put into service",
                expected="its files, its policy and its tokenizer, as they were sealed",
                found="; ".join(problems),
                where=str(self._versions.place(version)),
                fix="make it again with `dpo run` under its configuration, or choose another: dpo promoted lists them",
            )

    def _problems_of_given(self, version: str) -> list[str]:
        try:
            record = self._versions.record(version)
            given = record.get("given_policy") or {}
            model = pinned(ModelSource.model_validate(record["model"]), given) if given else ModelSource()
            changed = changed_since(model, given, Sources(self.root, network=False))
        except Unresolved:
            return []
        except (KeyError, ValueError, PipelineError) as error:
            return [f"it cannot be told what it starts from ({' '.join(str(error).split()):.200})"]
        return [f"the policy that it starts from is gone or changed since: {changed}"] if changed else []

    def _switch(self, state: State, version: str, action: Action, run: str) -> Event:
        """Whatever can be refused is done before the state is written; what comes after it is a rename."""
        candidate = str(self._versions.record(version)["candidate"])
        event = Event(time.strftime("%FT%T%z"), action, version, candidate, state.current, run)
        after = state.after(event)
        self._writing(lambda: self._make_link(version))
        self._writing(lambda: write_atomically(self.folder / STATE, after.to_json()))
        self._writing(self._swap_link)
        return event

    def _point(self, state: State) -> None:
        if state.current is not None and not self.leads_to(state.current):
            version = state.current
            self._writing(lambda: self._make_link(version))
            self._writing(self._swap_link)

    def _make_link(self, version: str) -> None:
        """The link to a version under a name that nobody reads."""
        place, fresh = self.folder / CURRENT, self._fresh_link
        if place.exists() and not place.is_symlink():
            raise StoreError(
                "the model in service cannot be switched",
                expected="a link, or nothing",
                found="a file or folder of somebody's",
                where=str(place),
                fix="move it away, then do the same again",
            )
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(target(version))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreError(
                "the model in service cannot be switched",
                expected="a file system that has links",
                found=str(error),
                where=str(self.folder),
                fix="put runtime.artifacts on another file system",
            ) from None

    def _swap_link(self) -> None:
        self._fresh_link.rename(self.folder / CURRENT)
        sync(self.folder)

    @property
    def _fresh_link(self) -> Path:
        return self.folder / f".{CURRENT}"  # the lock is held, so nobody else has this name

    @contextmanager
    def _locked(self) -> Iterator[State]:
        """Nobody else switches meanwhile. Yields the state."""
        lock = self.root / ".locks" / f"{PROMOTED}-{self.name}"
        try:
            with holding(lock, self._wait_seconds, "the switch of the model in service"):
                state = self.state()
                self._writing(self._make_folder)
                yield state
        except LockFolderError as error:
            raise self._unwritable(error) from None

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync(self.folder.parent)

    def _writing(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> StoreError:
        fix = "free the disk or its permissions, then do the same again"
        return StoreError("the model in service cannot be switched", found=str(error), where=str(self.folder), fix=fix)


def _chosen(state: State, to: str | None, where: Path) -> str:
    """The version to go back to. Raises StoreError where there is none."""
    was = list(dict.fromkeys(event.version for event in state.events))
    if to is None and len(state.standing) > 1:
        return state.standing[-2]
    if to in was and to != state.current:
        return str(to)
    if to is None:
        problem = "there is no model in service" if not was else "there was no model in service before this one"
    else:
        problem = f"version {to} is in service" if to == state.current else f"version {to} never was in service"
    others = [version for version in was if version != state.current]
    expected = f"one of {', '.join(others)}" if others else ""
    fix = f"dpo rollback --to {others[-1]}" if others else "dpo promote puts a model there that passed the gate"
    raise StoreError(problem, expected=expected, where=str(where), fix=fix)
