"""`dpo data`: what a file of comparisons holds, and what a pair looks like in tokens."""

import argparse

from flows._given import settings_of
from flows._grammar import Add, takes_configuration

_ROWS = 10_000
_MOST = 1_000_000_000
_SOURCE = "a file, a glob, a folder of files, or owner/name on the Hub"


def add_commands(add: Add) -> None:
    """Adds the command."""
    data = add(
        "data", _inspect, "look at comparisons: what a file holds, and what a pair looks like in tokens", plain=True
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    text = "what a file of comparisons holds: its format and why, lengths, languages, defects; and how to train on it"
    inspect = actions.add_parser("inspect", help=text, description=f"Tells {text}.")
    inspect.set_defaults(command=_inspect)
    inspect.add_argument("source", metavar="SOURCE", help=_SOURCE)
    inspect.add_argument(
        "--rows",
        type=_number,
        default=_ROWS,
        metavar="N",
        help="look at the first N rows of each (default: %(default)s)",
    )
    text = "one pair token by token: ids, texts, what is scored and what was cut"
    show = actions.add_parser("show", help=text, description=f"Shows {text}.")
    show.set_defaults(command=_show)
    show.add_argument("number", type=_number, metavar="N", help="which pair, counted from 1")
    show.add_argument(
        "--file", default="", metavar="SOURCE", help=f"of {_SOURCE}, instead of the pairs that the profile tokenized"
    )
    for action in (inspect, show):
        takes_configuration(action)
        action.add_argument("--json", action="store_true", help="print JSON")


def _number(text: str) -> int:
    """A whole number from 1 to a thousand millions. Raises what argparse turns into wrong usage."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"{number} is not from 1 to {_MOST:,}: rows and pairs are counted from 1")
    return number


def _inspect(given: argparse.Namespace) -> int:
    from flows._inspection import show_inspection

    return 0 if show_inspection(settings_of(given), given.source, given.rows, as_json=given.json) else 1


def _show(given: argparse.Namespace) -> int:
    from flows._pair import show_pair

    show_pair(settings_of(given), given.number, given.file, as_json=given.json)
    return 0
