"""The command `dpo`: the stages from a terminal, without a server. Parses and prints; the engine does the rest.

Nothing heavy is imported until a stage runs, so that `dpo status` answers at once.
"""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from engine.errors import PipelineError
from engine.secrets import outgoing
from flows import _chat, _completion, _data, _export, _init, _run
from flows._commands import add_looking, add_service, add_upkeep
from flows._grammar import Grammar

FAILED, INTERRUPTED = 1, 130
_QUIET = {
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_FULL_OR_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0, 1 for an error, 130 for Ctrl-C; wrong usage exits with 2."""
    given = parser().parse_args(arguments)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("dpo").setLevel(logging.INFO)
    sys.excepthook = _show_traceback
    try:
        return int(given.command(given))
    except (PipelineError, MemoryError, OSError) as error:
        return _explain(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    grammar = Grammar()
    start = grammar.group("begin")
    _init.add_commands(start)
    _data.add_commands(start)
    _run.add_commands(grammar.group("run"))
    add_looking(grammar.group("look at what came of it"))
    service = grammar.group("use the model")
    add_service(service)
    _chat.add_commands(service)
    _export.add_commands(service)
    upkeep = grammar.group("keep house")
    add_upkeep(upkeep)
    _completion.add_commands(upkeep)
    return grammar.parser


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(outgoing("".join(traceback.format_exception(kind, error, trace)).rstrip()), file=sys.stderr)


def _explain(error: Exception) -> int:
    """Tells an error that is no bug on stderr, without the traceback unless DPO_TRACEBACK is set."""
    if isinstance(error, BrokenPipeError):  # whoever read the output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, OSError) and error.errno not in _FULL_OR_REFUSED:
        raise error
    if os.environ.get("DPO_TRACEBACK"):
        _show_traceback(type(error), error, error.__traceback__)
    text = str(error)
    if isinstance(error, MemoryError):
        text = "out of memory\n  fix: lower runtime.micro_batch_tokens, score_batch_tokens and generation_batch"
    print(f"error: {text}", file=sys.stderr)
    return FAILED
