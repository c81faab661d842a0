"""What is in service and was: the switches of the model in service, and what follows from their order alone."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from engine.artifact import seal_of

Action = Literal["promoted", "forced", "rolled back"]
_VERSION = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Event:
    """One switch.

    Attributes:
        at: when, as `sealed_at` in a manifest.
        version: the key of the promote artifact that is in service since.
        candidate: the model in it; the same model may be in several versions, judged by other rules.
        replaced: the version that was in service before; None for the first.
        run: the run that made the switch or, where that was done by hand, the version; empty where no record says, and
            where it was taken back.
    """

    at: str
    action: Action
    version: str
    candidate: str
    replaced: str | None
    run: str


@dataclass(frozen=True)
class State:
    """Every switch so far, the latest last. The version of the last one is in service."""

    events: tuple[Event, ...] = ()

    @property
    def last(self) -> Event | None:
        """The switch that put into service what is there now."""
        return self.events[-1] if self.events else None

    @property
    def current(self) -> str | None:
        """The version in service."""
        return self.last.version if self.last else None

    @property
    def standing(self) -> tuple[str, ...]:
        """The versions that going back step by step leads through, the one in service last.

        Going back takes away what was put into service since; going back to what was taken away puts it on top again.
        """
        stack: list[str] = []
        for event in self.events:
            if event.action == "rolled back" and event.version in stack:
                while stack[-1] != event.version:
                    stack.pop()
            else:
                stack.append(event.version)
        return tuple(stack)

    def first(self, candidate: str) -> Event | None:
        """The switch that first put this model into service."""
        return next((event for event in self.events if event.candidate == candidate), None)

    def serves(self, candidate: str) -> bool:
        """Whether this model is in service, under whatever version."""
        return self.last is not None and self.last.candidate == candidate

    def is_forced(self) -> bool:
        """Whether the model in service was put there against the gate."""
        put = [event.action for event in self.events if event.version == self.current and event.action != "rolled back"]
        return put[-1:] == ["forced"]

    def incumbent_of(self, candidate: str) -> str | None:
        """The version that this model is held against: the one in service, and what it replaced itself if it is that.

        So a model keeps its opponent after it won, and judging it again is the same question.
        """
        if not self.serves(candidate):
            return self.current
        first = self.first(candidate)
        return first.replaced if first else None

    def after(self, event: Event) -> "State":
        """With one more switch."""
        return State((*self.events, event))

    def to_json(self) -> str:
        """As text that `parse` reads; it bears a seal, as a manifest does."""
        told: dict[str, Any] = {"version": self.current, "events": [asdict(event) for event in self.events]}
        return json.dumps(told | {"seal": seal_of(told)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str) -> "State":
        """What `to_json` wrote. Raises ValueError where it is anything else."""
        try:
            told = json.loads(text)
            if not isinstance(told, dict) or told.get("seal") != seal_of(told):
                raise ValueError("it was changed after it was written")
            state = cls(tuple(_event(each) for each in told["events"]))
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if told["version"] != state.current or not _follows(state.events):
            raise ValueError("its switches do not follow from each other")
        return state


def _event(told: Mapping[str, Any]) -> Event:
    event = Event(**told)
    texts = (event.at, event.candidate, event.run)
    versions = (event.version, *([] if event.replaced is None else [event.replaced]))
    if not all(isinstance(text, str) for text in texts) or event.action not in get_args(Action):
        raise ValueError("a switch lacks something")
    if not all(isinstance(version, str) and _VERSION.fullmatch(version) for version in versions):
        raise ValueError("a version is no key")  # it becomes part of a path
    return event


def _follows(events: Sequence[Event]) -> bool:
    before = [None, *(event.version for event in events)]
    return all(event.replaced == replaced for event, replaced in zip(events, before, strict=False))
