"""What one attempt is asked to do, and how it ended; both cross a pipe as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OVER_TIME = 124  # the code of an attempt that went on for too long; `dpo` has no such code


@dataclass(frozen=True)
class Strike:
    """Where an attempt ends itself with SIGKILL: at the `nth` operation of the kind `point` inside a stage, from 1."""

    stage: str
    point: str
    nth: int


@dataclass(frozen=True)
class Order:
    """One attempt of the command `dpo`.

    Attributes:
        folder: where it is run; artifacts and data lie below it.
        words: what follows `dpo`.
        log: stdout and stderr go to `<log>.out` and `<log>.err`.
        strike: where it ends itself; None: nowhere.
        beacon: the stages that have begun are told in `<log>.beacon` while it runs.
        traced: the paths that it writes are told in `<log>.trace`.
        census: file for the number of operations by stage and kind; empty: they are not counted.
        clock_seconds: by how much its clock is wrong.
        unchanged: paths that show the given size and times whatever they are, in the order of `os.stat_result`.
    """

    folder: str
    words: Sequence[str]
    log: str
    strike: Strike | None = None
    beacon: bool = False
    traced: bool = False
    census: str = ""
    clock_seconds: float = 0.0
    unchanged: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def begun(self) -> list[str]:
        """The stages that have begun, when the attempt has a beacon."""
        return self.lines("beacon")

    def lines(self, name: str) -> list[str]:
        """The lines of `<log>.<name>`, none when it is not there."""
        path = Path(f"{self.log}.{name}")
        return path.read_text("utf-8", "surrogateescape").splitlines() if path.is_file() else []

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Order":
        """The order with these fields."""
        strike = fields["strike"]
        return cls(**{**fields, "strike": Strike(**strike) if strike else None})


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: its exit code, or the signal's number below zero; OVER_TIME when it had to be ended.
        out, err: what it said.
        writes: the paths that it wrote, when it was traced.
    """

    code: int
    out: str
    err: str
    writes: Sequence[str] = ()

    @property
    def told(self) -> str:
        """The code with the last lines of what was said, for a reason."""
        return f"exit {self.code}: {' / '.join(self.err.strip().splitlines()[-4:])}"
