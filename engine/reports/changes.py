"""What two runs were told differently, and what became of their stages: from their records and manifests alone.

`then` is the run that another one, `now`, is held against, whichever of them is the newer one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.keys import leaves
from engine.reasons import Change, Nearest
from engine.reports.markdown import code, duration, escape, plain, table
from engine.reports.recorded import came_to, recorded
from engine.stage import Decision

if TYPE_CHECKING:
    from engine.runs import RunRecord

WHERE_AND_HOW = "runtime."  # keys that say where and how fast, and what is kept of it; see `engine.config`
_VALUE, _CELL = 40, 200  # characters
_MADE = ("run", "resume")
_INPUTS, _SOURCES, _CONFIG = "inputs.", "sources.", "config."  # of a payload; the inputs are what stages above made
_MOST = 3  # changes that are told of a line
_OUTCOMES = {"run": "made", "resume": "made, resumed", "reuse": "reused", "skip": "skipped"}


def configuration_changes(then: "RunRecord", now: "RunRecord") -> list[Change]:
    """Every key whose value differs, by its dotted name; those of `[runtime]` come last.

    An entry of a list whose entries have names, such as a rule of the gate, goes by its name. None stands for a key
    that one of the two, being of another version, does not have.
    """
    found = _changes(_leaves(then.config), _leaves(now.config))
    return sorted(found, key=lambda change: change.name.startswith(WHERE_AND_HOW))


def environment_changes(then: "RunRecord", now: "RunRecord") -> list[Change]:
    """Versions of packages that differ, and of the code of stages that both came to."""
    found = _changes(then.environment, now.environment)
    for decision in now.decisions:
        old, new = (recorded(each, decision.stage) for each in (then, now))
        if old is not None and new is not None:
            versions = (each.manifest["payload"].get("version") for each in (old, new))
            found += _changes(*({f"code of {decision.stage}": version} for version in versions))
    return found


def change_words(changes: Sequence[Change]) -> str:
    """Changes on one line of plain text, the first few of them: `train.beta 0.1 → 0.3; and 2 more`."""
    return _few([f"{plain(each.name, 80)} {value(each.old)} → {value(each.new)}" for each in changes])


def change_table(changes: Sequence[Change]) -> str:
    """The changes as a table; nothing where there are none."""
    return table(
        ["", "then", "now"],
        [[code(each.name), *(escape(value(one, _CELL)) for one in (each.old, each.new))] for each in changes],
    )


def value(given: object, limit: int = _VALUE) -> str:
    """A value of a configuration as plain text; – where there is none."""
    if given is None:
        return "–"
    return plain(given if given and isinstance(given, str) else _text(given), limit)


def stage_words(then: "RunRecord", now: "RunRecord") -> str:
    """Which stages were made anew and what began it, and which were reused, as plain text; empty without a stage."""
    first: list[str] = []
    below: list[str] = []
    made = [decision for decision in now.decisions if decision.action in _MADE]
    alone = [decision.stage for decision in made if not came_to(then, decision.stage)]
    for decision in made:
        if decision.stage not in alone:
            causes = _own(then, now, decision)
            (first if causes else below).append(f"{decision.stage} ({_few(causes)})" if causes else decision.stage)
    reused = [decision.stage for decision in now.decisions if decision.action == "reuse"]
    told = [f"Made anew: {plain(', '.join(first))}."] if first else []
    if below:
        told.append(f"{'And, since' if first else 'Made anew, since'} what they read has changed: {', '.join(below)}.")
    if alone:
        told.append(f"Made, which the other run did not come to: {', '.join(alone)}.")
    if reused:
        all_of_it = len(reused) == len(now.decisions) and now.state not in ("failed", "crashed", "cancelled")
        told.append("Every stage was reused." if all_of_it else f"Reused: {', '.join(reused)}.")
    return " ".join(told)


def stage_table(then: "RunRecord", now: "RunRecord") -> str:
    """Each stage then and now, how long it took where it was made, and why it is not the same."""
    before = {decision.stage: decision for decision in then.decisions}
    after = {decision.stage: decision for decision in now.decisions}
    names = [*after, *(name for name in before if name not in after)]
    rows = [
        [escape(name), _outcome(before.get(name)), _outcome(after.get(name)), escape(_why(then, now, name), _CELL)]
        for name in names
    ]
    return table(["stage", "then", "now", "what differs"], rows)


def _outcome(decision: Decision | None) -> str:
    if decision is None:
        return "–"
    took = f", {duration(decision.seconds)}" if decision.action in _MADE and decision.seconds is not None else ""
    return f"{_OUTCOMES[decision.action]}{took}"


def _why(then: "RunRecord", now: "RunRecord", stage: str) -> str:
    old, new = (recorded(each, stage) for each in (then, now))
    if old is None or new is None:
        return "–"
    if old.key == new.key:
        return "nothing: it is the same"
    changes = _between(then, now, stage)
    own = _few([change.said(stage) for change in _told(then, now, stage, changes)])
    told = [own] if own else []
    read = [change.name.removeprefix(_INPUTS) for change in changes if change.name.startswith(_INPUTS)]
    told += [f"other input: {', '.join(read)}"] if read else []
    told += ["its content is the same for all that"] if old.digest == new.digest else []
    return "; ".join(told)


def _own(then: "RunRecord", now: "RunRecord", decision: Decision) -> list[str]:
    """Why a stage was made anew, but for what it reads; the run's own words where its manifests do not say."""
    changes = _between(then, now, decision.stage)
    if not changes:
        return [plain(decision.why, _CELL)]
    own = (change.said(decision.stage) for change in _told(then, now, decision.stage, changes))
    return [words.partition(": ")[0] for words in own]


def _told(then: "RunRecord", now: "RunRecord", stage: str, changes: Sequence[Change]) -> list[Change]:
    """Of what a stage's artifacts were made of differently, but for its inputs, what the two runs were told so.

    A payload leaves out settings that bear no meaning beside others. So a key that both runs have counts with the
    values that it has there, and only where these differ; and a source that came or went along with settings of its
    own name says no more than these do.
    """
    own = [change for change in changes if not change.name.startswith(_INPUTS)]
    tables = {change.name.split(".")[1] for change in own if change.name.startswith(_CONFIG)}
    asked = [
        _as_configured(then, now, stage, change)
        for change in own
        if not (change.name.removeprefix(_SOURCES) in tables and None in (change.old, change.new))
    ]
    return [change for change in asked if _text(change.old) != _text(change.new)] or own


def _as_configured(then: "RunRecord", now: "RunRecord", stage: str, change: Change) -> Change:
    """The change with the values that the two records have for its key, in the stage's table or in a shared one."""
    rest = change.name.removeprefix(_CONFIG)
    if rest != change.name:
        for key in (f"{stage}.{rest}", rest):
            found = [_at(each.config, key.split(".")) for each in (then, now)]
            if all(found):
                (old,), (new,) = found
                return Change(change.name, old, new)
    return change


def _at(config: object, key: Sequence[str]) -> tuple[object, ...]:
    """The value of a key, alone; nothing where there is no such key."""
    for name in key:
        if not isinstance(config, Mapping) or name not in config:
            return ()
        config = config[name]
    return (config,)


def _few(told: Sequence[str]) -> str:
    """The first few on one line, and how many more there are."""
    more = [f"and {len(told) - _MOST:,} more"] if len(told) > _MOST else []
    return "; ".join([*told[:_MOST], *more])


def _between(then: "RunRecord", now: "RunRecord", stage: str) -> list[Change]:
    """What the two artifacts of a stage were made of differently; nothing where one of them is not known."""
    old, new = (recorded(each, stage) for each in (then, now))
    if old is None or new is None:
        return []
    nearest = Nearest.to(new.manifest["payload"], [old])
    return nearest.changes if nearest else []


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The names whose values differ, in their order now."""
    names = [*now, *(name for name in then if name not in now)]
    pairs = ((name, then.get(name), now.get(name)) for name in names)
    return [Change(name, old, new) for name, old, new in pairs if _text(old) != _text(new)]


def _text(given: object) -> str:
    return json.dumps(given, ensure_ascii=False, sort_keys=True)


def _named(config: object) -> object:
    """The same, with lists of tables that have names as tables of these."""
    if isinstance(config, Mapping):
        return {str(key): _named(each) for key, each in config.items()}
    if isinstance(config, list) and config and all(isinstance(each, Mapping) and "name" in each for each in config):
        named = {str(each["name"]): {key: each[key] for key in each if key != "name"} for each in config}
        return named if len(named) == len(config) else config
    return config


def _leaves(config: Mapping[str, Any]) -> dict[str, object]:
    named = _named(config)
    return dict(leaves(named)) if isinstance(named, dict) else {}
