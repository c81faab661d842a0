"""What the command `dpo compare` shows: the model of this configuration against one that was evaluated earlier."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.config import Settings, one_name
from engine.errors import MissingInputError, StoreError
from engine.evaluation.comparison import change
from engine.evaluation.held_against import Compared, compare
from engine.evaluation.intervals import Difference
from engine.plan import Plan
from engine.preferences.schema import TOKENS, read_batches
from engine.reports.markdown import number, plain
from engine.runs import RunRecord, all_runs, records
from engine.selection import Selection
from engine.stage import Stage
from engine.store import Artifact, Store
from flows._report import LAST

_STAGE, _HELD_OUT = "evaluate", "eval.parquet"
_RIGHT, _CHOSEN = "eval_rewards/accuracies", "eval_log_ratio_per_token/chosen"
_TEXTS = ("prompt", "chosen", "rejected")


def show_comparison(
    stages: Sequence[Stage[Any]], settings: Settings, other: str, *, as_json: bool, limit: int = 20
) -> None:
    """Says which of two models is right more often, how sure that is, and which pairs got worse.

    Args:
        other: the id of a run, the key of an evaluate artifact, or `LAST`: see `last_run`.
        limit: how many pairs are told at most, of those that got worse and, in JSON, of those that got better.

    Raises:
        MissingInputError: this configuration has not been evaluated.
        StoreError: there is no such run or artifact, or no evaluation of that run is left.
        DataError: one of the two was made by an earlier version, or they have no pair in common.
    """
    plan = Plan(stages, settings, Selection(until=_STAGE))
    plan.plan()
    here, named = _present(plan), other
    if other == LAST:
        other = last_run(settings, here)
        named = f"{other}, the last run of this profile that evaluated another model,"
    there = find_evaluation(settings.runtime.artifacts, other)
    found = compare(here, there)
    told = (found.worse[:limit], found.better[:limit] if as_json else [])
    texts = _texts(plan.artifacts.get("subsample"), [row["pair_id"] for rows in told for row in rows])
    worse, better = ([{**row, **texts.get(row["pair_id"], {})} for row in rows] for rows in told)
    if as_json:
        _print_json(here, there, found, worse, better)
    else:
        _print(named, found, worse)


def last_run(settings: Settings, here: Artifact) -> str:
    """The id of the latest run of this profile that completed and whose evaluation is there and is not `here`.

    Raises:
        StoreError: there is none.
    """
    root, origin = settings.runtime.artifacts, one_name(settings.profile)
    for record in records(root):
        if record.origin == origin and record.state == "completed":
            evaluated = record.artifact(_STAGE)
            if evaluated and evaluated.key != here.key:
                return record.id
    raise StoreError(
        "no other run of this profile is there to compare with",
        expected="a completed run that evaluated another model than this configuration's",
        where=str(root / "runs"),
        fix="name a run of another profile, or the key of an evaluate artifact",
    )


def find_evaluation(root: Path, name: str) -> Artifact:
    """The evaluate artifact with that key, or of the run with that id, below `root`.

    Raises:
        StoreError: there is no such run or artifact, or its files are gone.
    """
    folders = {folder.name: folder for folder in all_runs(root)}
    if name in folders:
        artifact = RunRecord.load(folders[name]).artifact(_STAGE)
        if artifact is None:
            raise StoreError(
                f"no evaluation of run `{name}` is left",
                found="it did not come so far, or what it made was removed",
                where=str(folders[name]),
            )
        return artifact
    known = {artifact.key: artifact for artifact in Store(root).all(_STAGE)}
    if name not in known:
        latest = ", ".join([*list(folders)[:3], *list(known)[:3]]) or "there are none"
        raise StoreError(
            f"there is no run and no evaluation `{name}`",
            expected=f"the id of a run or the key of an evaluate artifact; the latest: {latest}",
            where=str(root),
        )
    return known[name]


def _present(plan: Plan) -> Artifact:
    """The evaluate artifact under this configuration, if its files are there."""
    decision, artifact = plan.decisions[_STAGE], plan.artifacts.get(_STAGE)
    if artifact is None or artifact.pruned:
        raise MissingInputError(
            "the model of this configuration has not been evaluated",
            found=f"{decision.action}: {decision.why}",
            fix=plan.settings.command("run", "--until", _STAGE),
        )
    return artifact


def _texts(subsample: Artifact | None, pair_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Prompt and responses of some held-out pairs; nothing where the files of the subsample stage are gone."""
    wanted, found = set(pair_ids), {}
    if subsample is None or subsample.pruned or not wanted:
        return {}
    for batch in read_batches(subsample.file(_HELD_OUT), TOKENS, ["pair_id", *_TEXTS]):
        for place, pair_id in enumerate(batch["pair_id"].to_pylist()):
            if pair_id in wanted:
                found[pair_id] = {name: batch[name][place].as_py() for name in _TEXTS}
    return found


def _print(other: str, found: Compared, worse: Sequence[Mapping[str, Any]]) -> None:
    for line in (*_sentences(other, found), ""):
        print(plain(line))
    if not worse:
        if _RIGHT in found.differences:
            print("no pair got worse")
        return
    title = f"pairs that got worse, {len(worse)} of {len(found.worse)}"
    grid = Table("pair", "fell by", *_TEXTS, title=title, title_justify="left")
    for row in worse:
        grid.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in _cells(row)))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(grid)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [row["pair_id"][:8], f"{number(-change(row))} nats", *(plain(row.get(name, "–"), 60) for name in _TEXTS)]


def _sentences(other: str, found: Compared) -> list[str]:
    lines, flips = [], ""
    if right := found.differences.get(_RIGHT):
        lines.append(
            f"This model is {_more(right)} of the {found.pairs:,} common pairs "
            f"{'than' if right.value else 'as'} {other} {_ends(right, 100, 1)}{_doubt(right)}."
        )
        flips = f"{len(found.worse):,} pairs got worse and {len(found.better):,} better; "
    if chosen := found.differences.get(_CHOSEN):
        lines.append(
            f"Its chosen responses have {number(abs(chosen.value))} nats per token "
            f"{'more' if chosen.value >= 0 else 'less'}, measured from where it started {_ends(chosen, 1, 3)}."
        )
    lines.append(f"{flips}{found.only_here:,} held-out pairs are here alone, {found.only_there:,} there alone.")
    reasons: dict[str, list[str]] = {}
    for metric, why in found.not_comparable.items():
        reasons.setdefault(why, []).append(metric)
    return lines + [f"Not comparable: {', '.join(metrics)} ({why})." for why, metrics in reasons.items()]


def _more(right: Difference) -> str:
    points = 100 * right.value
    return f"right on {abs(points):.1f} points {'fewer' if points < 0 else 'more'}" if points else "right on as many"


def _ends(difference: Difference, times: float, digits: int) -> str:
    """The interval in brackets, with the sign of a gain."""
    if difference.low is None or difference.high is None:
        return "(too few to say how sure that is)"
    low, high = (f"{times * end:+.{digits}f}".replace("-", "−") for end in (difference.low, difference.high))
    return f"(95 %: {low} to {high})"


def _doubt(difference: Difference) -> str:
    if difference.low is None or difference.high is None or difference.low > 0 or difference.high < 0:
        return ""
    return "; that may be chance" if difference.value else ""


def _print_json(
    here: Artifact,
    there: Artifact,
    found: Compared,
    worse: Sequence[Mapping[str, Any]],
    better: Sequence[Mapping[str, Any]],
) -> None:
    told = {
        "here": {"key": here.key, "path": str(here.path)},
        "there": {"key": there.key, "path": str(there.path)},
        "pairs": found.pairs,
        "only_here": found.only_here,
        "only_there": found.only_there,
        "differences": {name: each.as_dict() for name, each in found.differences.items()},
        "not_comparable": dict(found.not_comparable),
        "got_worse": len(found.worse),
        "got_better": len(found.better),
        "worse": [_renamed(row) for row in worse],
        "better": [_renamed(row) for row in better],
    }
    json.dump(told, sys.stdout, indent=1, ensure_ascii=False)
    print()


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("tonight_", "here_").replace("service_", "there_"): value for name, value in row.items()}
