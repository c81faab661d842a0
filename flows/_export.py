"""`dpo export`: an adapter or a merged model for use elsewhere."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.reports.markdown import plain
from flows._finished import finished_of, whole_number
from flows._stopping import terminable

if TYPE_CHECKING:
    from engine.exporting.job import Exported

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Adds the command."""
    export = add("export", _export, "write the adapter, or the merged model, for use elsewhere")
    export.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--version", metavar="VERSION", help="another version than the one in service")
    which.add_argument("--run", metavar="ID", help="what this run trained, whatever the gate said of it")
    kind = export.add_mutually_exclusive_group()
    kind.add_argument("--merge", action="store_true", help="the whole model, the adapter merged into it and checked")
    kind.add_argument(
        "--on-base",
        action="store_true",
        help="the adapter for the base, where training went on with the adapter of the SFT",
    )
    export.add_argument(
        "--pairs",
        type=whole_number,
        default=32,
        metavar="N",
        help="held-out pairs that the merged model is checked on (default: %(default)s)",
    )
    export.add_argument(
        "--scores",
        nargs="?",
        choices=["parquet", "jsonl"],
        const="parquet",
        help="the reference scores too, with TRL's column names (default: parquet)",
    )
    export.add_argument("--push", metavar="OWNER/NAME", help="to this repository of the Hub, private if new")
    export.add_argument("--public", action="store_true", help="everybody may read what is pushed")
    export.add_argument("--force", action="store_true", help="replace an earlier export in OUT")
    export.add_argument("--json", action="store_true", help="print JSON")


def _export(given: argparse.Namespace) -> int:
    from engine.exporting.job import Wish, check_wish, export

    push = _repository(given.push)
    out = _place(given.out)
    wish = Wish(out, given.merge, given.on_base, given.scores, push, given.public, given.pairs, given.force)
    publisher = check_wish(wish)
    with terminable():
        made = export(finished_of(given), wish, publisher)
    if given.json:
        print(json.dumps(made.as_dict(), indent=1, ensure_ascii=False))
    else:
        for line in _lines(made):
            print(plain(line))
    return 0


def _repository(name: str | None) -> str:
    """The one to push to, empty for none; a script's empty variable is a wrong name, and no wish to keep it here."""
    from engine.exporting.publishing import check_repository

    if name is not None:
        check_repository(name)
    return name or ""


def _place(out: Path) -> Path:
    """The whole path of a folder. Raises ConfigError where there is none, as for somebody's home who is not known."""
    try:
        return Path(os.path.abspath(out.expanduser()))  # noqa: PTH100 - a link stays one, and is refused as such
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            "the export cannot go there", found=str(error), where=str(out), fix="name another folder, by its whole path"
        ) from None


def _lines(made: "Exported") -> Iterator[str]:
    """What was exported, and what has to be known of it, for people."""
    what = "adapter" if made.base else "merged model"
    yield f"{what} of {made.name}, {_size(made.bytes)}: {made.path}"
    if made.verdict != "promote":
        yield "the gate kept it back" if made.verdict else "no gate has judged it"
    if made.base:
        yield f"it belongs on {made.base.words}"
        if made.base.beside:
            yield "what loads one model without an adapter wants it merged: --merge"
    if check := made.check:
        apart = f"its log-probs and the adapter's on its base differ by at most {check.difference:.2g} nats"
        yield f"checked on {check.pairs} pairs: {apart}, {check.tolerance:.2g} are allowed"
    for name, rows in made.scores.items():
        yield f"reference scores: {rows:,} pairs in scores/{name}"
    yield from made.notes
    if made.address:
        yield f"pushed: {made.address}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
