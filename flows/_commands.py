"""The commands that look at what was made, keep it in order, and put it into service: words to calls, and no more."""

import argparse

from engine.selection import Selection
from flows._given import count, settings_of
from flows._grammar import Add

_SINCE = "what changed since this run; `last`: the run of its profile before it that completed and was evaluated"
_OTHER = "the id of a run, or the key of an evaluate artifact; `last`: the last run of this profile with another model"


def add_looking(add: Add) -> None:
    """`report`, `compare` and `why`."""
    report = add("report", _report, "print the report of a run, the latest by default")
    report.add_argument("run", nargs="?", default="", help="the run's id")
    report.add_argument("--against", default="", metavar="RUN", help=_SINCE)
    report.add_argument("--path", action="store_true", help="print where the page with pictures is instead")
    report.add_argument("--open", action="store_true", help="show the page with pictures in a browser")
    compare = add("compare", _compare, "whether this model is right more often than another, and where it is not")
    compare.add_argument("other", metavar="OTHER", help=_OTHER)
    compare.add_argument(
        "--limit", type=count, default=20, metavar="N", help="tell so many pairs that got worse (default: %(default)s)"
    )
    why = add("why", _why, "every difference that makes a stage run, or when and by which run it was made")
    why.add_argument("stage", metavar="STAGE", help="a name as `dpo status` lists them")
    for command in (report, compare, why):
        _takes_json(command)


def add_upkeep(add: Add) -> None:
    """`verify` and `gc`."""
    verify = add("verify", _verify, "read every byte that was sealed; broken artifacts go to quarantine; exit 1 if any")
    verify.add_argument("stages", nargs="*", metavar="STAGE", help="these stages only")
    verify.add_argument("--keep", action="store_true", help="leave what is broken where it is")
    gc = add("gc", _gc, "show what nothing needs any more and how much it would free; removes it with --delete")
    gc.add_argument("--delete", action="store_true", help="remove it; of an artifact the manifest is kept")
    gc.add_argument(
        "--older-than",
        type=count,
        default=30,
        metavar="DAYS",
        help="age at which unfinished work, quarantined things and runs need not be kept (default: %(default)s)",
    )
    gc.add_argument(
        "--keep-runs",
        type=count,
        metavar="N",
        help="keep what the latest N runs reach, instead of all that are younger; the latest completed one of each"
        " profile is kept in any case",
    )
    for command in (verify, gc):
        _takes_json(command)


def add_service(add: Add) -> None:
    """`promoted`, `promote` and `rollback`."""
    promoted = add("promoted", _promoted, "what is in service, since when and by which run, and the history")
    promoted.add_argument("--path", action="store_true", help="print its folder alone, all links resolved")
    promote = add("promote", _promote, "put the model of this configuration into service, if the gate lets it pass")
    promote.add_argument("--force", action="store_true", help="whatever the rules say; the history notes it as forced")
    rollback = add("rollback", _rollback, "put the version before the one in service back into service")
    rollback.add_argument("--to", metavar="VERSION", help="this one instead; it must have been in service")
    for command in (promoted, promote, rollback):
        _takes_json(command)


def _takes_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _report(given: argparse.Namespace) -> int:
    from flows._report import Wish, show_report

    wish = Wish(given.run, given.against, path=given.path, opened=given.open, as_json=given.json)
    show_report(settings_of(given).runtime.artifacts, wish)
    return 0


def _compare(given: argparse.Namespace) -> int:
    from flows._compare import show_comparison
    from tasks import STAGES

    show_comparison(STAGES, settings_of(given), given.other, as_json=given.json, limit=given.limit)
    return 0


def _why(given: argparse.Namespace) -> int:
    from flows._upkeep import show_why
    from tasks import STAGES

    settings = settings_of(given)
    Selection(only=given.stage).names(list(settings.stages))
    show_why(STAGES, settings, given.stage, as_json=given.json)
    return 0


def _verify(given: argparse.Namespace) -> int:
    from flows._upkeep import show_verdicts, verdicts
    from tasks import STAGES

    settings = settings_of(given)
    for name in given.stages:
        Selection(only=name).names(list(settings.stages))
    chosen = [stage for stage in STAGES if not given.stages or stage.name in given.stages]
    return 0 if show_verdicts(verdicts(chosen, settings, keep=given.keep), as_json=given.json) else 1


def _gc(given: argparse.Namespace) -> int:
    from flows._upkeep import show_garbage
    from tasks import STAGES

    gone = show_garbage(
        STAGES,
        settings_of(given),
        older_than_days=given.older_than,
        keep_runs=given.keep_runs,
        delete=given.delete,
        as_json=given.json,
    )
    return 0 if gone else 1


def _promote(given: argparse.Namespace) -> int:
    from flows._promotion import put_in_service
    from tasks import STAGES

    put_in_service(STAGES, settings_of(given), forced=given.force, as_json=given.json)
    return 0


def _rollback(given: argparse.Namespace) -> int:
    from flows._promotion import take_back

    take_back(settings_of(given), given.to, as_json=given.json)
    return 0


def _promoted(given: argparse.Namespace) -> int:
    from flows._promotion import show_promoted

    show_promoted(settings_of(given), path=given.path, as_json=given.json)
    return 0
