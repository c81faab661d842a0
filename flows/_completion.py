"""`dpo completion`: a script with which the shell completes commands, options, profiles, stages and keys."""

import argparse
import shlex
from collections.abc import Iterator

from flows._grammar import Add

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def add_commands(add: Add) -> None:
    """Adds the command."""
    command = add("completion", _completion, "print what makes your shell complete this command", plain=True)
    command.add_argument("shell", choices=SHELLS, help='bash, for one: eval "$(dpo completion bash)" in ~/.bashrc')


def _completion(given: argparse.Namespace) -> int:
    print(script(given.shell))
    return 0


def script(shell: str) -> str:
    """The script for one of `SHELLS`. It offers the profiles, stages and keys that there are when it is made."""
    import shtab

    from flows.cli import parser

    grammar, words = parser(), _words()
    for action in _actions(grammar):
        offered = words.get(_kind(action))
        if offered:
            action.complete = shtab.cmd(shlex.join(["printf", "%s\\n", *offered]))  # type: ignore[attr-defined]
    return shtab.complete(grammar, shell)


def _kind(action: argparse.Action) -> str:
    named = {"--profile": "profiles", "--set": "keys"}
    for option in action.option_strings:
        if option in named:
            return named[option]
    return "stages" if action.metavar == "STAGE" or action.dest == "stage" else ""


def _actions(grammar: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in grammar._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def _words() -> dict[str, list[str]]:
    from engine.config import PROFILES, Runtime
    from engine.keys import Schema, known_keys
    from tasks import SHARED, STAGES

    schema: Schema = {**SHARED, **{stage.name: stage.config for stage in STAGES}, "runtime": Runtime}
    return {
        "profiles": sorted(file.stem for file in PROFILES.glob("*.toml")),
        "stages": [stage.name for stage in STAGES],
        "keys": [f"{key}=" for key in sorted(known_keys(schema, set(SHARED)))],
    }
