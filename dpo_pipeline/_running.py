"""Runs made and looked at."""

import logging

from dpo_pipeline._configured import Overrides, settings_of
from dpo_pipeline._results import Run
from engine.runs import mark_crashed, records
from engine.selection import Selection
from engine.stage import Decision
from flows._given import planned
from flows._run import carry_out, recorded


def run(
    profile: str = "demo",
    overrides: Overrides | None = None,
    *,
    only: str | None = None,
    since: str | None = None,
    until: str | None = None,
    force: bool = False,
) -> Run:
    """Makes what is not made yet, from the data to the gate's verdict, as `dpo run` does; progress goes to stderr.

    >>> run = dpo.run("demo", {"train.beta": 0.1}, until="train")
    >>> run.decisions["train"].action in ("run", "reuse")
    True

    Args:
        profile: a name in configs/, or the path of a TOML file.
        overrides: dotted key and value of what is to differ from it.
        only: this stage alone; its inputs must be there.
        since: this stage and those below it.
        until: this stage and those above it.
        force: rebuild the selected stages even if they are there.

    Raises:
        PipelineError: the configuration's (a ConfigError: nothing has run) or the error of the stage that failed. What
            was made before is kept, so the same call goes on from there; `runs()[0]` is then the run that failed.
    """
    settings, selection = settings_of(profile, overrides), Selection(only, since, until, force)
    log = logging.getLogger("dpo")
    if log.level == logging.NOTSET:  # what the stages tell is part of the progress
        log.setLevel(logging.INFO)
    record = recorded(settings, selection)
    carry_out(record, settings, selection)
    return Run(record, settings.named_runtime)


def status(
    profile: str = "demo",
    overrides: Overrides | None = None,
    *,
    only: str | None = None,
    since: str | None = None,
    until: str | None = None,
    force: bool = False,
) -> dict[str, Decision]:
    """What `run` with the same arguments would do with each stage, and why. Runs nothing, and asks no network.

    >>> changed = dpo.status("demo", {"train.beta": 0.3})
    >>> changed["train"].action
    'run'

    Returns:
        By stage, in order: `action` (`reuse`, `run`, `resume` or `skip`), `why`, `key` (None where it cannot be told
        yet), `path` of the artifact and `seconds` that it took, as far as there is one.

    Raises:
        ConfigError: as `run`.
    """
    return planned(settings_of(profile, overrides), Selection(only, since, until, force)).decisions


def runs(profile: str = "demo", overrides: Overrides | None = None) -> list[Run]:
    """Every recorded run below the profile's `runtime.artifacts`, whatever its profile, the latest first.

    >>> latest = dpo.runs("demo")[0]
    >>> latest.state
    'completed'

    Raises:
        ConfigError: as `run`. A record that cannot be read is left out with a warning.
    """
    runtime = settings_of(profile, overrides).named_runtime
    mark_crashed(runtime.artifacts)
    return [Run(record, runtime) for record in records(runtime.artifacts)]
