"""What the commands `dpo promote`, `dpo rollback` and `dpo promoted` do and show. Parses nothing."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from engine.artifact import Artifact
from engine.config import Settings
from engine.errors import MissingInputError, StoreError
from engine.plan import Plan
from engine.policies import given_policy
from engine.promotion.pointer import STAGE
from engine.promotion.rules import HARMLESS
from engine.promotion.service import NO_WAY_BACK, Service, services
from engine.promotion.state import Event
from engine.promotion.versions import candidate_of
from engine.reports.headlines import headline
from engine.reports.markdown import plain
from engine.runs import maker
from engine.selection import Selection
from engine.sources import ModelSource, Sources, Unresolved
from engine.stage import Stage
from engine.store import Store


def put_in_service(stages: Sequence[Stage[Any]], settings: Settings, *, forced: bool, as_json: bool = False) -> None:
    """Puts the model of this configuration into service, and says so.

    Args:
        forced: whatever the rules said of it, and whichever model it was held against.

    Raises:
        MissingInputError: nothing of this configuration was judged yet.
        StoreError: the gate refuses it, another model is in service than the one it was held against, or it is broken.
    """
    judged = _judged(stages, settings, forced=forced)
    if not forced:
        _check_verdict(judged, settings)
    service = Service.of(settings.named_runtime)
    event = service.put(judged.key, maker(service.root, STAGE, judged.key), forced=forced)
    if as_json:
        _print_json({"version": service.current(), "event": vars(event) if event else None})
    elif event is None:
        print(f"its model is in service already, as version {service.current()}")
    else:
        print(_switched(event))


def take_back(settings: Settings, to: str | None, *, as_json: bool = False) -> None:
    """Puts the version before the one in service back, or the one named, and says so. Raises StoreError."""
    event = Service.of(settings.named_runtime).rollback(to)
    if as_json:
        _print_json({"version": event.version, "event": vars(event)})
    else:
        print(_switched(event))


def show_promoted(settings: Settings, *, path: bool, as_json: bool) -> None:
    """Prints what is in service, since when and by which run, its numbers and the history; or its folder alone.

    Raises:
        MissingInputError: its folder is asked for and no model is in service.
        StoreError: it cannot be told what is in service; or its folder is asked for and is gone.
    """
    service = Service.of(settings.named_runtime)
    if path:
        print(_folder(service, settings))
        return
    facts = _facts(service, Store(service.root), settings)
    if as_json:
        _print_json(facts)
    else:
        for indent, line in _lines(facts):
            print(" " * indent + plain(line))


def _print_json(facts: dict[str, Any]) -> None:
    json.dump(facts, sys.stdout, indent=1, ensure_ascii=False)
    print()


def _judged(stages: Sequence[Stage[Any]], settings: Settings, *, forced: bool) -> Artifact:
    """The promote artifact under this configuration; by force one of the same model under other rules will do."""
    plan = Plan(stages, settings, Selection(until=STAGE))
    plan.plan()
    decision = plan.decisions[STAGE]
    if decision.path is not None and decision.key is not None:
        return Artifact(STAGE, decision.key, decision.path)
    others = _of_same_model(plan, settings) if forced else []
    if not others:
        raise MissingInputError(
            "the model of this configuration was not judged yet, or its files were removed",
            found=f"{STAGE}: {decision.action}, {decision.why}",
            fix=settings.command("run"),
        )
    return others[0]


def _of_same_model(plan: Plan, settings: Settings) -> list[Artifact]:
    """Every verdict on the model of this configuration, the newest first."""
    model = getattr(settings.stages[STAGE], "model", ModelSource())
    try:
        given = given_policy(model, Sources(settings.runtime.data, network=False))
        candidate = candidate_of(plan.artifacts, given)
    except (KeyError, Unresolved):  # it is not trained yet, or what it was trained on is not known
        return []
    found = Store(settings.runtime.artifacts).all(STAGE)
    return [artifact for artifact in found if artifact.handed_down.get("candidate") == candidate]


def _check_verdict(judged: Artifact, settings: Settings) -> None:
    verdict = json.loads(judged.file("verdict.json").read_text("utf-8"))
    if verdict["verdict"] == "promote":
        return
    failed = [f"{rule['name']}: {rule['words']}" for rule in verdict["rules"] if rule["outcome"] not in HARMLESS]
    raise StoreError(
        "the gate keeps this model out of service",
        found="\n    ".join([f"{len(failed)} of {len(verdict['rules'])} rules stand in the way", *failed]),
        where=str(judged.path),
        fix=f"train a better one, or whatever the rules say: {settings.command('promote', '--force')}",
    )


def _folder(service: Service, settings: Settings) -> str:
    version = service.current()
    if version is None:
        raise MissingInputError("there is no model in service yet", fix=settings.command("run"))
    found = Store(service.root).find(STAGE, version)
    if found is None:
        where = str(service.root / STAGE / version)
        raise StoreError(f"the files of version {version} are gone", where=where, fix=_way_back(service, settings))
    return str(found.path.resolve())


def _facts(service: Service, store: Store, settings: Settings) -> dict[str, Any]:
    state = service.state()
    history = [vars(event) for event in reversed(state.events)]
    facts = {"service": service.name, "others": dict(_others(service)), "history": history}
    if state.current is None:
        return {"in_service": None} | facts
    problems = service.problems(state.current)
    more = {
        "path": str(service.root / STAGE / state.current),
        "problems": problems,
        "way_back": _way_back(service, settings) if problems else "",
        "numbers": dict(_numbers(service, store, state.current)),
    }
    return {"in_service": history[0] | more, "goes_back_to": [*reversed(state.standing[:-1])]} | facts


def _way_back(service: Service, settings: Settings) -> str:
    version = service.fallback()
    return settings.command("rollback", "--to", version) if version else NO_WAY_BACK


def _others(service: Service) -> Iterator[tuple[str, str]]:
    """Name and version of what else is in service below the same root; `unknown` where that cannot be told."""
    for other in services(service.root):
        if other.name != service.name:
            try:
                version = other.current()
            except StoreError:
                version = "unknown"
            if version:
                yield other.name, version


def _numbers(service: Service, store: Store, version: str) -> Iterator[tuple[str, str]]:
    """The headline numbers of its evaluation, for people; none where its record or its evaluation is gone."""
    try:
        key = str(service.artifact(version).handed_down["stages"]["evaluate"])
        evaluated = store.find("evaluate", key) or store.pruned("evaluate", key)
    except (StoreError, KeyError):
        return
    yield from headline(evaluated) if evaluated else []


def _lines(facts: dict[str, Any]) -> Iterator[tuple[int, str]]:
    current = facts["in_service"]
    others = ", ".join(f"{name} ({version})" for name, version in facts["others"].items())
    if current is None:
        yield 0, f"no model is in service yet for {facts['service']}"
    else:
        yield from _lines_of(facts, current)
    if others:
        yield 0, f"other services here: {others}; a profile's is named by runtime.service"


def _lines_of(facts: dict[str, Any], current: dict[str, Any]) -> Iterator[tuple[int, str]]:
    run = f" by run {current['run']}" if current["run"] else ""
    what = f"version {current['version']} is in service for {facts['service']} since {current['at']}"
    yield 0, f"{what}: {current['action']}{run}"
    yield 2, current["path"]
    if current["problems"]:
        yield 2, f"it cannot serve any more: {'; '.join(current['problems'])}; what can be done: {current['way_back']}"
    yield from ((2, f"{label}: {shown}") for label, shown in current["numbers"].items())
    if facts["goes_back_to"]:
        yield 0, f"`dpo rollback` would go back to {facts['goes_back_to'][0]}"
    yield 0, "history, the latest first:"
    for event in facts["history"]:
        yield 2, f"{event['at']}  {event['action']:<11}  {event['version']}  in place of {event['replaced'] or 'none'}"


def _switched(event: Event) -> str:
    return f"{event.action}: version {event.version} is in service now, in place of {event.replaced or 'none'}"
