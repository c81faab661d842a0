"""Which finished model a command is about: the one in service, another version, or that of a run."""

import argparse
from typing import TYPE_CHECKING

from engine.config import load

if TYPE_CHECKING:
    from engine.exporting.finished import Finished


def finished_of(given: argparse.Namespace) -> "Finished":
    """The model that `--version` or `--run` names, or the one in service of the profile.

    Raises:
        ConfigError: the configuration is wrong.
        MissingInputError: none is named and none is in service.
        StoreError: there is no such version or run, or something of it is gone or broken.
    """
    from engine.exporting.finished import Finished
    from tasks import SHARED, STAGES

    settings = load(given.profile, given.set, STAGES, SHARED)
    runtime = settings.named_runtime
    if given.run:
        return Finished.of_run(given.run, runtime)
    if given.version:
        return Finished.of_version(given.version, runtime)
    return Finished.in_service(runtime, settings.command("run"))


def whole_number(text: str) -> int:
    """A count from 1 to a million, for argparse. Raises ValueError."""
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise ValueError(text)
    return number
