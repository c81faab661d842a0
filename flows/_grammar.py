"""The grammar of the command `dpo`: its groups of commands, and the page that `dpo --help` prints."""

import argparse
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Protocol

Run = Callable[[argparse.Namespace], int]

_INTRODUCTION = "From raw comparisons to a judged DPO adapter."
_ENDING = """\
`dpo COMMAND --help` tells a command's own options. Most take --profile, a name in configs/ or the path of a TOML file
(default: demo), and --set KEY=VALUE, which puts one key on top of it (repeatable: --set train.beta=0.2 --set
subsample.pairs=5000); `dpo config` prints every key. A list or a table stands in single quotes for the shell:
--set 'train.loss=["sigmoid", "sft"]'.

stages, in their order: download, tokenize, subsample, sft, reference, train, evaluate, compare, promote.

exit codes: 0 done, also where the gate of a run keeps its model out of service; 1 an error, told on stderr with what
to do, or something found broken; 2 wrong usage; 130 Ctrl-C; 143 terminated. With --json the standard output is JSON and
nothing else: empty after an error that left nothing to tell."""


class Add(Protocol):
    """Adds a command with --profile and --set to a group, and returns its parser."""

    def __call__(self, name: str, function: Run, text: str, /, *, plain: bool = False) -> argparse.ArgumentParser: ...


class Grammar:
    """The parser of `dpo`. Commands come in groups, in the order in which they are added."""

    def __init__(self) -> None:
        self.parser = _Top(prog="dpo", description=_INTRODUCTION)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")

    def group(self, title: str) -> Add:
        """What adds commands to a group of that title."""
        shown: list[tuple[str, str]] = []
        self.parser.groups.append((title, shown))

        def add(name: str, function: Run, text: str, /, *, plain: bool = False) -> argparse.ArgumentParser:
            shown.append((name, text))
            command = self._commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
            command.set_defaults(command=function)
            if not plain:
                takes_configuration(command)
            return command

        return add


def takes_configuration(command: argparse.ArgumentParser) -> None:
    """Gives a command the options that name a configuration."""
    command.add_argument("--profile", default="demo", help="a name in configs/ or a path (default: %(default)s)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="put one key on top of the profile; repeatable"
    )


class _Top(argparse.ArgumentParser):
    """Prints its commands by groups instead of one long list."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        super().__init__(*arguments, **settings)  # type: ignore[arg-type]
        self.groups: list[tuple[str, Sequence[tuple[str, str]]]] = []

    def format_help(self) -> str:
        """The page of all commands."""
        width = min(shutil.get_terminal_size().columns - 2, 118)
        if not self.groups:
            return super().format_help()
        column = 4 + max(len(name) for _, commands in self.groups for name, _ in commands)
        lines = ["usage: dpo COMMAND [OPTION…]", "", _INTRODUCTION]
        for title, commands in self.groups:
            lines += ["", f"{title}:"]
            for name, text in commands:
                lines += textwrap.wrap(
                    text, width, initial_indent=f"  {name:<{column - 2}}", subsequent_indent=" " * column
                )
        ending = ["\n".join(textwrap.wrap(paragraph, width)) for paragraph in _ENDING.split("\n\n")]
        return "\n".join([*lines, "", "\n\n".join(ending), ""])
