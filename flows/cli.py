"""The command `dpo`: the stages from a terminal, without a server. Parses and prints; the engine does the rest.

Nothing heavy is imported until a stage runs, so that `dpo status` answers at once.
"""

import argparse
import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import NoReturn

from engine.config import Settings, load
from engine.errors import MissingInputError, PipelineError
from engine.pipeline import Pipeline
from engine.plan import Plan
from engine.reports.markdown import duration, plain
from engine.runs import RunRecord
from engine.secrets import outgoing, redact
from engine.selection import Selection
from engine.stage import Decision
from engine.toml_text import to_toml

OK, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143
_QUIET = {
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_FULL_OR_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


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
    top = argparse.ArgumentParser(prog="dpo", description="From raw comparisons to a judged DPO adapter.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        command.add_argument("--profile", default="demo", help="a name in configs/ or a path (default: %(default)s)")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key; repeatable")
        return command

    _add_selection(add("run", _run, "make what is not made yet"))
    _add_selection(add("status", _status, "what would run, what is reused, and why; runs nothing"))
    report = add("report", _report, "print the report of a run, the latest by default")
    report.add_argument("run", nargs="?", default="", help="the run's id")
    report.add_argument("--against", default="", metavar="RUN", help="what changed since this run, or since the `last`")
    report.add_argument("--path", action="store_true", help="print where the page with pictures is instead")
    report.add_argument("--open", action="store_true", help="show the page with pictures in a browser")
    report.add_argument("--json", action="store_true", help="print the run's record")
    add("config", _config, "print every key in force, as a profile")
    path = add("path", _path, "print the folder of a stage's sealed artifact")
    path.add_argument("stage", help="the stage")
    _add_selection(path)
    _add_upkeep(add)
    _add_service(add)
    return top


def _add_upkeep(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    why = add("why", _why, "every difference that makes a stage run, or when and by which run it was made")
    why.add_argument("stage", help="the stage")
    verify = add("verify", _verify, "read every byte that was sealed; broken artifacts go to quarantine; exit 1 if any")
    verify.add_argument("stages", nargs="*", metavar="STAGE", help="these stages only")
    verify.add_argument("--keep", action="store_true", help="leave what is broken where it is")
    gc = add("gc", _gc, "show what nothing needs any more and how much it would free; removes it with --delete")
    gc.add_argument("--delete", action="store_true", help="remove it; of an artifact the manifest is kept")
    gc.add_argument(
        "--older-than",
        type=_count,
        default=30,
        metavar="DAYS",
        help="age at which unfinished work, quarantined things and runs need not be kept (default: %(default)s)",
    )
    gc.add_argument(
        "--keep-runs",
        type=_count,
        metavar="N",
        help="keep what the latest N runs reach, instead of all that are younger; the latest completed one of each"
        " profile is kept in any case",
    )
    for command in (why, verify, gc):
        command.add_argument("--json", action="store_true", help="print JSON")


def _add_service(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    promote = add("promote", _promote, "put the model of this configuration into service, if the gate lets it pass")
    promote.add_argument("--force", action="store_true", help="whatever the rules say; the history notes it as forced")
    rollback = add("rollback", _rollback, "put the version before the one in service back into service")
    rollback.add_argument("--to", metavar="VERSION", help="this one instead; it must have been in service")
    promoted = add("promoted", _promoted, "what is in service, since when and by which run, and the history")
    promoted.add_argument("--path", action="store_true", help="print its folder alone, all links resolved")
    compare = add("compare", _compare, "whether this model is right more often than another, and where it is not")
    compare.add_argument("other", metavar="OTHER", help="the id of a run, or the key of an evaluate artifact")
    compare.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="tell so many pairs that got worse (default: %(default)s)"
    )
    for command in (promoted, compare):
        command.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1_000_000:
        raise ValueError(text)
    return number


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--only", metavar="STAGE", help="this stage alone; its inputs must be there")
    command.add_argument("--from", dest="since", metavar="STAGE", help="this stage and those below it")
    command.add_argument("--until", metavar="STAGE", help="this stage and those above it")
    command.add_argument("--force", action="store_true", help="rebuild the selected stages even if they are there")
    command.add_argument("--json", action="store_true", help="print one JSON array, an object per stage")


def _settings(given: argparse.Namespace) -> Settings:
    from tasks import SHARED, STAGES

    return load(given.profile, given.set, STAGES, SHARED)


def _selection(given: argparse.Namespace) -> Selection:
    return Selection(given.only, given.since, given.until, given.force)


def _plan(settings: Settings, selection: Selection) -> Plan:
    from tasks import STAGES

    plan = Plan(STAGES, settings, selection)
    plan.plan()
    return plan


def _status(given: argparse.Namespace) -> int:
    decisions = list(_plan(_settings(given), _selection(given)).decisions.values())
    if given.json:
        _print_json(decisions)
    else:
        for each in decisions:
            took, why = duration(each.seconds), plain(each.why)
            print(f"{each.stage:<10} {each.action:<7} {each.key or '–':<17} {took:>12}  {why}")
    return OK


def _run(given: argparse.Namespace) -> int:
    from flows._terminal import Terminal, show_results
    from tasks import STAGES

    settings, selection = _settings(given), _selection(given)
    selection.names([stage.name for stage in STAGES])  # a wrong name leaves no record
    again = settings.command("run", *selection.arguments())
    record = RunRecord.start(settings, selection, settings.runtime.artifacts)
    try:
        # What libraries print is no result, so it goes where the logs go.
        with _recorded(record, again), redirect_stdout(sys.stderr), Terminal(record) as terminal:
            pipeline = Pipeline(STAGES, settings, selection, terminal)
            for stage in STAGES:
                pipeline.run(stage)
    finally:
        if given.json:
            _print_json(record.decisions)
    if not given.json:
        show_results(record, record.decisions)
    return OK


@contextmanager
def _recorded(record: RunRecord, again: str) -> Iterator[None]:
    """Writes down how the run ended, however it ends; being terminated is an end like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        record.finish("cancelled")
        print(
            f"\nStopped. What is sealed and what was trained so far is kept; go on with: {redact(again)}",
            file=sys.stderr,
        )
        raise
    except BaseException as error:
        record.finish("failed", str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}")
        raise
    else:
        record.finish("completed")
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def _report(given: argparse.Namespace) -> int:
    from flows._report import Wish, show_report

    wish = Wish(given.run, given.against, path=given.path, opened=given.open, as_json=given.json)
    show_report(_settings(given).runtime.artifacts, wish)
    return OK


def _config(given: argparse.Namespace) -> int:
    tables = _settings(given).as_dict()
    print(f"# profile {json.dumps(tables.pop('profile'), ensure_ascii=False)}, every key in force")
    print(redact(to_toml(tables)), end="")
    return OK


def _path(given: argparse.Namespace) -> int:
    settings, selection = _settings(given), Selection(given.only, given.since, given.until)
    if given.stage not in settings.stages:
        Selection(only=given.stage).names(list(settings.stages))
    if selection == Selection():
        selection = Selection(until=given.stage)
    decision = _plan(settings, selection).decisions[given.stage]
    if given.json:
        _print_json([decision])
    if decision.path is None:
        raise MissingInputError(
            f"there is no sealed artifact of {given.stage} under this configuration",
            found=f"{decision.action}: {decision.why}",
            fix=settings.command("run", "--until", given.stage) if decision.action != "skip" else "",
        )
    if not given.json:
        print(decision.path)
    return OK


def _why(given: argparse.Namespace) -> int:
    from flows._upkeep import show_why
    from tasks import STAGES

    settings = _settings(given)
    Selection(only=given.stage).names(list(settings.stages))
    show_why(STAGES, settings, given.stage, as_json=given.json)
    return OK


def _verify(given: argparse.Namespace) -> int:
    from flows._upkeep import show_verdicts, verdicts
    from tasks import STAGES

    settings = _settings(given)
    for name in given.stages:
        Selection(only=name).names(list(settings.stages))
    chosen = [stage for stage in STAGES if not given.stages or stage.name in given.stages]
    return OK if show_verdicts(verdicts(chosen, settings, keep=given.keep), as_json=given.json) else FAILED


def _gc(given: argparse.Namespace) -> int:
    from flows._upkeep import show_garbage
    from tasks import STAGES

    gone = show_garbage(
        STAGES,
        _settings(given),
        older_than_days=given.older_than,
        keep_runs=given.keep_runs,
        delete=given.delete,
        as_json=given.json,
    )
    return OK if gone else FAILED


def _promote(given: argparse.Namespace) -> int:
    from flows._promotion import put_in_service
    from tasks import STAGES

    put_in_service(STAGES, _settings(given), forced=given.force)
    return OK


def _rollback(given: argparse.Namespace) -> int:
    from flows._promotion import take_back

    take_back(_settings(given), given.to)
    return OK


def _promoted(given: argparse.Namespace) -> int:
    from flows._promotion import show_promoted

    show_promoted(_settings(given), path=given.path, as_json=given.json)
    return OK


def _compare(given: argparse.Namespace) -> int:
    from flows._compare import show_comparison
    from tasks import STAGES

    show_comparison(STAGES, _settings(given), given.other, as_json=given.json, limit=given.limit)
    return OK


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(outgoing("".join(traceback.format_exception(kind, error, trace)).rstrip()), file=sys.stderr)


def _print_json(decisions: Sequence[Decision]) -> None:
    print(json.dumps([decision.as_dict() for decision in decisions], indent=1, ensure_ascii=False))


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
