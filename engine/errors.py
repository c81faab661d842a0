"""The errors a user can meet, each saying what was expected, what was found, where, and what repairs it."""

from engine.secrets import outgoing


class PipelineError(Exception):
    """Base of every error this project raises on purpose. Never retried unless it is a `TransientError`.

    Attributes:
        problem: one sentence naming what is wrong.
        expected, found, where, fix: shown on lines of their own when given.

    In all of its texts secrets are hidden, and what acts on a terminal is an escape.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", where: str = "", fix: str = "") -> None:
        problem, expected, found, where, fix = map(outgoing, (problem, expected, found, where, fix))
        self.problem, self.expected, self.found, self.where, self.fix = problem, expected, found, where, fix
        details = (("expected", expected), ("found", found), ("where", where), ("fix", fix))
        super().__init__("\n".join([problem, *(f"  {name}: {text}" for name, text in details if text)]))


class ConfigError(PipelineError):
    """A key or value of the configuration is wrong; nothing has run yet."""


class DataError(PipelineError):
    """The data that came in cannot be used."""


class ModelError(PipelineError):
    """A model, adapter or tokenizer cannot be loaded or does not fit the rest."""


class StoreError(PipelineError):
    """An artifact cannot be written, read or trusted."""


class MissingInputError(PipelineError):
    """A stage was asked to run alone and something above it is not there."""


class NumericsError(PipelineError):
    """A number that must be finite, or two that must agree, are not."""


class MemoryShortageError(PipelineError):
    """The smallest piece of the work does not fit into the memory that is there."""


class TransientError(PipelineError):
    """Network, lock or server trouble that another attempt may not meet. The only kind that is retried."""
