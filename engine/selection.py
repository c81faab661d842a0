"""Which part of the pipeline a run is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ConfigError
from engine.keys import nearest


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
