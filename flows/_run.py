"""`dpo run`, `status`, `path` and `config`: the stages under a configuration, run or only looked at."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from engine.config import Settings
from engine.errors import MissingInputError, PipelineError
from engine.pipeline import Pipeline
from engine.reports.markdown import duration, plain
from engine.runs import RunRecord
from engine.secrets import redact, redacted
from engine.selection import Selection
from engine.toml_text import to_toml
from flows._given import add_selection, planned, print_decisions, selection_of, settings_of
from flows._grammar import Add
from flows._stopping import terminable


def add_commands(add: Add) -> None:
    """Adds the four commands."""
    run = add("run", _run, "make what is not made yet, from the data to the gate's verdict")
    add_selection(run, "rebuild the selected stages even if they are there")
    status = add("status", _status, "what would run, what is reused, and why; runs nothing")
    add_selection(status, "tell what `dpo run --force` would do")
    path = add("path", _path, "print the folder of a stage's sealed artifact")
    path.add_argument("stage", metavar="STAGE", help="a name as `dpo status` lists them")
    add_selection(path, "changes nothing here; the words of `dpo run` are taken as they are")
    config = add("config", _config, "print every key in force, as a profile")
    config.add_argument("--json", action="store_true", help="print one JSON object instead")


def _status(given: argparse.Namespace) -> int:
    decisions = list(planned(settings_of(given), selection_of(given)).decisions.values())
    if given.json:
        print_decisions(decisions)
    else:
        for each in decisions:
            took, why = duration(each.seconds), plain(each.why)
            print(f"{each.stage:<10} {each.action:<7} {each.key or '–':<17} {took:>12}  {why}")
    return 0


def _run(given: argparse.Namespace) -> int:
    from flows._terminal import show_results

    settings, selection = settings_of(given), selection_of(given)
    record = recorded(settings, selection)
    try:
        carry_out(record, settings, selection)
    finally:
        if given.json:
            print_decisions(record.decisions)
    if not given.json:
        show_results(record, record.decisions)
    return 0


def recorded(settings: Settings, selection: Selection) -> RunRecord:
    """The record of a run that is about to begin. Raises ConfigError for a stage that is none: it leaves no record."""
    from tasks import STAGES

    selection.names([stage.name for stage in STAGES])
    return RunRecord.start(settings, selection, settings.runtime.artifacts)


def carry_out(record: RunRecord, settings: Settings, selection: Selection) -> None:
    """Makes what is not made yet, shown on stderr, and writes down in the record what became of it.

    Raises:
        PipelineError: of the stage that failed.
    """
    from flows._terminal import Terminal
    from tasks import STAGES

    again = settings.command("run", *selection.arguments())
    # What libraries print is no result, so it goes where the logs go.
    with terminable(), _written_down(record, again), redirect_stdout(sys.stderr), Terminal(record) as terminal:
        pipeline = Pipeline(STAGES, settings, selection, terminal)
        for stage in STAGES:
            pipeline.run(stage)


@contextmanager
def _written_down(record: RunRecord, again: str) -> Iterator[None]:
    """Writes down how the run ended, however it ends."""
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


def _path(given: argparse.Namespace) -> int:
    settings, selection = settings_of(given), Selection(given.only, given.since, given.until)
    if given.stage not in settings.stages:
        Selection(only=given.stage).names(list(settings.stages))
    if selection == Selection():
        selection = Selection(until=given.stage)
    decision = planned(settings, selection).decisions[given.stage]
    if given.json:
        print_decisions([decision])
    if decision.path is None:
        raise MissingInputError(
            f"there is no sealed artifact of {given.stage} under this configuration",
            found=f"{decision.action}: {decision.why}",
            fix=settings.command("run", "--until", given.stage) if decision.action != "skip" else "",
        )
    if not given.json:
        print(decision.path)
    return 0


def _config(given: argparse.Namespace) -> int:
    tables = settings_of(given).as_dict()
    if given.json:
        print(json.dumps(redacted(tables), indent=1, ensure_ascii=False))
        return 0
    print(f"# profile {json.dumps(tables.pop('profile'), ensure_ascii=False)}, every key in force")
    print(redact(to_toml(tables)), end="")
    return 0
