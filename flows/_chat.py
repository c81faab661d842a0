"""`dpo chat`: talk to the model in service, beside the one it was made from."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from engine.errors import DataError
from engine.secrets import visible
from flows._finished import finished_of, whole_number
from flows._given import count

if TYPE_CHECKING:
    from engine.chatting import Chat, Said

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
_WIDE = 100  # columns of a terminal from which on two answers stand side by side
_HELP = "/reset begins anew, /system TEXT sets the system message (nothing: none), /quit or Ctrl-D leaves"
_FORGOT = "(the beginning of the conversation did not fit and was left out)"
_CUT = "(cut off)"


def add_commands(add: Add) -> None:
    """Adds the command."""
    chat = add("chat", _chat, "talk to the model in service, and to the one it was made from")
    chat.add_argument(
        "--base",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have the policy that the training started from answer beside it (default: yes)",
    )
    which = chat.add_mutually_exclusive_group()
    which.add_argument("--version", metavar="VERSION", help="another version than the one in service")
    which.add_argument("--run", metavar="ID", help="what this run trained, whatever the gate said of it")
    how = chat.add_mutually_exclusive_group()
    how.add_argument("--greedy", action="store_true", help="the likeliest token each time, as is the default")
    how.add_argument("--sample", action="store_true", help="draw: temperature 0.7, top-p 0.9")
    chat.add_argument("--seed", type=count, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    chat.add_argument(
        "--max-new-tokens", type=whole_number, default=256, metavar="N", help="longest answer (default: %(default)s)"
    )


def _chat(given: argparse.Namespace) -> int:
    finished = finished_of(given)  # what is wrong with it is told before torch is loaded
    from engine.chatting import Chat
    from engine.models.generation import GenerationSettings

    settings = GenerationSettings(given.max_new_tokens)
    if given.sample:
        settings = GenerationSettings(given.max_new_tokens, do_sample=True, temperature=0.7, top_p=0.9)
    _tell(f"loading {finished.name}…", sys.stderr.isatty())
    chat = Chat(finished.open(), settings, beside=given.base, seed=given.seed)
    talk(chat, interactive=sys.stdin.isatty())
    return 0


def talk(chat: "Chat", *, interactive: bool) -> None:
    """Reads a line, answers it, until there is no more or Ctrl-C is pressed.

    Args:
        interactive: whether somebody types; else lines come through a pipe, and no prompt is shown.
    """
    if interactive:
        print(_HELP)
    try:
        for line in _lines(interactive=interactive):
            if line == "/quit":
                break
            if line.startswith("/"):
                print(_obey(chat, line))
            elif line:
                _turn(chat, line, interactive=interactive)
    except KeyboardInterrupt:
        pass  # the line that was begun, or the answer, is given up
    if interactive:
        print()


def _lines(*, interactive: bool) -> Iterator[str]:
    if interactive:
        import readline  # noqa: F401 - input() then knows the arrow keys
    while True:
        try:
            line = input("> " if interactive else "")
            # Under some locales Python lets any byte in, as half a character, which no tokenizer takes.
            line = line.encode("utf-8", "surrogateescape").decode("utf-8")
        except EOFError:
            return
        except UnicodeError as error:
            raise DataError("what was typed is no text", found=str(error), fix="send UTF-8") from None
        yield line.strip()


def _obey(chat: "Chat", line: str) -> str:
    """Does what a line says that begins with a slash; what was done, for people."""
    word, _, rest = line.partition(" ")
    if word == "/reset":
        chat.reset()
        return "(a new conversation)"
    if word == "/system":
        chat.system = rest.strip()
        chat.reset()
        return f"(a new conversation, {'with this system message' if chat.system else 'without a system message'})"
    return _HELP if word == "/help" else f"(there is no {visible(word)}; {_HELP})"


def _turn(chat: "Chat", line: str, *, interactive: bool) -> None:
    try:
        answers = chat.ask(line)
    except DataError as error:
        print(f"({visible(error.problem)}{': ' + visible(error.found) if error.found else ''})")
        return
    names = ["before" if speaker.start else "after" for speaker in chat.speakers]
    _show(list(zip(names, map(_shown, answers), strict=True)), interactive=interactive)


def _shown(said: "Said") -> str:
    """An answer with what has to be known of it; nothing in it acts on the terminal."""
    text = "\n".join(visible(part) for part in said.text.strip().split("\n")) or "(nothing)"
    remarks = [*([_FORGOT] if said.forgot else []), *([] if said.ended else [_CUT])]
    return "\n".join([text, *remarks])


def _show(answers: Sequence[tuple[str, str]], *, interactive: bool) -> None:
    """Side by side where there is room, else one under the other; one alone without its name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if len(answers) > 1 and interactive and console.width >= _WIDE:
        grid = Table(*(name for name, _ in answers), expand=True, box=None, padding=(0, 2, 1, 0))
        for column in grid.columns:
            column.ratio = 1
        grid.add_row(*(Text(text) for _, text in answers))
        console.print(grid)
        return
    for name, text in answers:
        print(f"{name}: {text}" if len(answers) > 1 else text, flush=True)
    if interactive:
        print()


def _tell(words: str, shown: bool) -> None:
    if shown:
        print(words, file=sys.stderr)
