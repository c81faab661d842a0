"""What the commands `dpo why`, `dpo verify` and `dpo gc` show. Parses nothing and computes nothing."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engine.attempts import Attempt
from engine.config import Settings
from engine.garbage import Waste, find_waste, remove
from engine.plan import Explanation, Plan
from engine.reach import run_roots, under_way
from engine.reasons import Nearest
from engine.reports.markdown import plain
from engine.runs import RunRecord, maker, run_of
from engine.selection import Selection
from engine.stage import Stage
from engine.verification import Verdict, verify_all, verify_scores

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_KINDS = {
    "sealed": "the sealed artifact",
    "pruned": "the removed artifact (its manifest is kept)",
    "attempt": "the interrupted attempt",
}


def show_why(stages: Sequence[Stage[Any]], settings: Settings, stage: str, *, as_json: bool) -> None:
    """Why a stage would run, with every difference that causes it; or when and by which run it was made."""
    plan = Plan(stages, settings, Selection(until=stage))
    plan.plan()
    found = plan.explain(stage)
    facts = _facts(found, settings)
    if as_json:
        _print_json(facts)
    else:
        for indent, line in _lines(found, facts):
            print(" " * indent + plain(line))


def _facts(found: Explanation, settings: Settings) -> dict[str, Any]:
    own, cause, nearest = found.chain[0], found.chain[-1], found.nearest
    return {
        "stage": own.stage,
        "action": own.action,
        "why": own.why,
        "key": own.key,
        "waits_for": [each.stage for each in found.chain[1:]],
        "cause": {"stage": cause.stage, "action": cause.action, "why": cause.why, "key": cause.key},
        "nearest": _nearest(nearest, settings) if nearest else None,
        "changes": [{"name": each.name, "old": each.old, "new": each.new} for each in nearest.changes]
        if nearest
        else [],
    }


def _nearest(nearest: Nearest, settings: Settings) -> dict[str, Any]:
    made, root = nearest.made, settings.runtime.artifacts
    run = run_of(root, made.process) if isinstance(made, Attempt) else maker(root, made.stage, made.key)
    return {
        "kind": nearest.kind,
        "key": made.key,
        "path": str(made.path),
        "made_at": nearest.made_at or None,
        "run": run or None,
    }


def _lines(found: Explanation, facts: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for each in found.chain:
        yield 0, f"{each.stage}: {each.action}, {each.why}"
    nearest = facts["nearest"]
    if not nearest:
        return
    verb = "begun" if nearest["kind"] == "attempt" else "made"
    by = f"by run {nearest['run']}" if nearest["run"] else "by a run of which no record is left"
    made = f"{_KINDS[nearest['kind']]} {nearest['key']}, {verb} {nearest['made_at'] or 'at an unknown time'} {by}"
    yield 2, f"compared with {made}:" if facts["changes"] else f"it is {made}"
    for change in facts["changes"]:
        yield 2, change["name"]
        yield 4, f"was {_value(change['old'])}"
        yield 4, f"is  {_value(change['new'])}"


def _value(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def verdicts(stages: Iterable[Stage[Any]], settings: Settings, *, keep: bool) -> Iterator[Verdict]:
    """A verdict on all that was sealed, and on the scores that are kept, one after the other as it is read."""
    runtime, stages = settings.runtime, list(stages)
    yield from verify_all(stages, runtime.data, runtime.artifacts, keep=keep)
    if any(stage.name == "reference" for stage in stages):
        yield from verify_scores(runtime.data, keep=keep)


def show_verdicts(found: Iterator[Verdict], *, as_json: bool) -> bool:
    """Prints a line per verdict as it comes, and a summary. Returns whether everything is right."""
    told: list[Verdict] = []
    for verdict in found:
        told.append(verdict)
        if not as_json:
            print(plain(_verdict_line(verdict)), flush=True)
    broken = [each for each in told if each.problems]
    if as_json:
        _print_json([each.as_dict() for each in told])
    else:
        read = size(sum(each.size_bytes or 0 for each in told if not each.problems))
        print(f"{len(told) - len(broken)} right ({read}), {len(broken)} broken")
    return not broken


def _verdict_line(verdict: Verdict) -> str:
    if not verdict.problems:
        return f"ok      {verdict.name:<28} {size(verdict.size_bytes or 0):>10}"
    place = f"; moved to {verdict.moved}" if verdict.moved else f"; {verdict.note}" if verdict.note else ""
    return f"BROKEN  {verdict.name:<28} {'; '.join(verdict.problems)}{place}"


def show_garbage(
    stages: Sequence[Stage[Any]],
    settings: Settings,
    *,
    older_than_days: float,
    keep_runs: int | None,
    delete: bool,
    as_json: bool,
) -> bool:
    """Prints what may go, and removes it with `delete`. Returns whether all that was to be removed is gone."""
    runtime = settings.runtime
    found = find_waste(stages, runtime.data, runtime.artifacts, older_than_days=older_than_days, keep_runs=keep_runs)
    left = {each.path: remove(each, runtime.data, runtime.artifacts) if delete else "" for each in found}
    run = under_way(run_roots(runtime.data, runtime.artifacts))
    if run:
        print(plain(_spared(run)), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        _print_json(
            [each.as_dict() | {"removed": delete and not left[each.path], "left": left[each.path]} for each in found]
        )
    else:
        _show_garbage(found, {str(path): why for path, why in left.items() if why}, delete)
    return not any(left.values())


def _spared(run: RunRecord) -> str:
    where = f"{run.process}, recorded in {run.folder}"
    return f"run {run.id} is under way ({where}): until it is over, no artifact and no scores go"


def _show_garbage(found: Sequence[Waste], left: dict[str, str], delete: bool) -> None:
    for each in found:
        why = f"left: {left[str(each.path)]}" if str(each.path) in left else each.why
        print(plain(f"{size(each.size_bytes):>10}  {each.path}  {why}"))
    gone = [each for each in found if str(each.path) not in left]
    freed = size(sum(each.size_bytes for each in gone))
    if not found:
        print("nothing is there that nothing needs")
    elif delete:
        print(f"removed {len(gone)}, {freed} freed")
    else:
        print(f"{len(gone)} would go, {freed} would be free; to remove them, add --delete")


def size(count: float) -> str:
    """A number of bytes for people."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    print()
