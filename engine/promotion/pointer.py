"""Which model is in service: reading `<artifacts>/promoted/<name>/`, for whoever has to know and switches nothing.

Every profile has a service of its own, under its name: what one of them tries out is neither put in the place of
another's model nor held against it. Profiles that name the same one share it.
"""

from pathlib import Path

from engine.errors import StoreError
from engine.promotion.state import Event, State

PROMOTED, STATE, CURRENT, STAGE = "promoted", "state.json", "current", "promote"
KEPT = 3  # the version in service and the last two before it are never removed


def names(root: Path) -> list[str]:
    """The services below a root of artifacts, sorted. Raises StoreError where the folder cannot be read."""
    folder = root / PROMOTED
    try:
        below = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path.name for path in below if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    except OSError as error:
        raise StoreError("it cannot be told what is in service", found=str(error), where=str(folder)) from None


class Pointer:
    """What is in service under one name below one root of artifacts. Reading takes no lock."""

    def __init__(self, root: Path, name: str) -> None:
        if not name:
            raise ValueError("a service without a name")
        self.root, self.name = root, name
        self.folder = root / PROMOTED / name

    def state(self) -> State:
        """Every switch so far.

        Raises:
            StoreError: it is damaged, gone while the link is there, or cannot be read. It is never begun anew.
        """
        path = self.folder / STATE
        begun = (self.folder / CURRENT).is_symlink()  # asked first: the link is made after the state
        try:
            return State.parse(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and not begun:
                return State()
            raise self._unknown(error) from None

    def current(self) -> str | None:
        """The version in service, a key of stage promote; None before the first. Raises StoreError as `state`."""
        return self.state().current

    def history(self) -> tuple[Event, ...]:
        """Every switch, the latest last. Raises StoreError as `state`."""
        return self.state().events

    def incumbent_of(self, candidate: str) -> str | None:
        """The version that a model is held against; see `State.incumbent_of`. Raises StoreError as `state`."""
        return self.state().incumbent_of(candidate)

    def kept(self) -> list[str]:
        """The versions that must stay: the one in service and the last two before it. Raises StoreError as `state`."""
        return list(dict.fromkeys(reversed(self.state().standing)))[:KEPT]

    def is_pointed(self) -> bool:
        """Whether the link leads to the version in service. Raises StoreError as `state`."""
        return self.leads_to(self.state().current)

    def leads_to(self, version: str | None) -> bool:
        """Whether the link leads to a version; where there is none, it need not be there."""
        link = self.folder / CURRENT
        return version is None or (link.is_symlink() and link.readlink() == target(version))

    def _unknown(self, error: Exception) -> StoreError:
        return StoreError(
            "it cannot be told which model is in service",
            expected="the file as it was last written; a copy of it serves",
            found=str(error),
            where=str(self.folder / STATE),
            fix=f"put a copy of it back; or note which version its neighbour `{CURRENT}` leads to, move {self.folder} "
            "away and run `dpo promote --force` under the configuration of that version: a new history begins",
        )


def target(version: str) -> Path:
    """Where the link leads, from the folder that it lies in."""
    return Path("..") / ".." / STAGE / version
