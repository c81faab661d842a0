"""What the words of a command line stand for: a configuration, a selection of stages, and what they would do."""

import argparse
import json
from collections.abc import Sequence

from engine.config import Settings, load
from engine.plan import Plan
from engine.selection import Selection
from engine.stage import Decision


def settings_of(given: argparse.Namespace) -> Settings:
    """The configuration that --profile and --set name. Raises ConfigError."""
    from tasks import SHARED, STAGES

    return load(given.profile, given.set, STAGES, SHARED)


def add_selection(command: argparse.ArgumentParser, force: str) -> None:
    """Gives a command the options that select stages, and `--force` with what it does there."""
    command.add_argument("--only", metavar="STAGE", help="this stage alone; its inputs must be there")
    command.add_argument("--from", dest="since", metavar="STAGE", help="this stage and those below it")
    command.add_argument("--until", metavar="STAGE", help="this stage and those above it")
    command.add_argument("--force", action="store_true", help=force)
    command.add_argument("--json", action="store_true", help="print one JSON array, an object per stage")


def selection_of(given: argparse.Namespace) -> Selection:
    """The stages that --only, --from and --until select."""
    return Selection(given.only, given.since, given.until, given.force)


def planned(settings: Settings, selection: Selection) -> Plan:
    """What every stage would do. Runs nothing, and asks no network."""
    from tasks import STAGES

    plan = Plan(STAGES, settings, selection)
    plan.plan()
    return plan


def print_decisions(decisions: Sequence[Decision]) -> None:
    """Prints them as one JSON array."""
    print(json.dumps([decision.as_dict() for decision in decisions], indent=1, ensure_ascii=False))


def count(text: str) -> int:
    """A whole number from 0 to a million. Raises ValueError, which argparse turns into wrong usage."""
    number = int(text)
    if not 0 <= number <= 1_000_000:
        raise ValueError(text)
    return number
