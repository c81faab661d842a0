"""The gate in words: what each rule said, and which model is in service now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.artifact import HANDED_DOWN
from engine.errors import StoreError
from engine.promotion.pointer import STAGE, Pointer
from engine.promotion.rules import HARMLESS
from engine.promotion.state import State
from engine.reports.comparison import (
    DIFFERENCE,
    comparison_parts,
    comparison_sections,
    comparison_words,
    differences,
)
from engine.reports.evaluation import contents
from engine.reports.markdown import code, escape
from engine.store import Artifact, Store

__all__ = [
    "DIFFERENCE",
    "Ruling",
    "comparison_parts",
    "comparison_sections",
    "comparison_words",
    "differences",
    "gate_parts",
    "gate_sections",
    "gate_words",
    "refusal",
    "rulings",
]

_NOT_APPLIED = "not applied"


@dataclass(frozen=True)
class Ruling:
    """What one rule of the gate said, as `verdict.json` has it."""

    name: str
    outcome: str
    words: str
    reason: str = ""


def rulings(promoted: Artifact) -> list[Ruling]:
    """Every rule's outcome, from `verdict.json` or, where that is gone, from the manifest.

    Raises:
        StoreError: neither can be read.
    """
    told = contents(promoted, "verdict.json").get("rules")
    if isinstance(told, Sequence):
        return [
            Ruling(*(str(each.get(name, "")) for name in ("name", "outcome", "words", "reason")))
            for each in told
            if isinstance(each, Mapping)
        ]
    metrics = promoted.metrics
    recorded, failed = metrics.get("rules"), metrics.get("rules_failed") or ()
    named = recorded.items() if isinstance(recorded, Mapping) else ()
    return [Ruling(str(name), "failed" if name in failed else "passed", str(words)) for name, words in named]


def gate_words(promoted: Artifact) -> list[str]:
    """The gate's verdict, a line for each rule that is not met, and which model is in service now; as plain text.

    Raises:
        StoreError: the artifact cannot be read.
    """
    rules = rulings(promoted)
    unmet = [rule for rule in rules if rule.outcome not in HARMLESS]
    applied = sum(rule.outcome != _NOT_APPLIED for rule in rules)
    if _passed(promoted):
        words = [f"Verdict of the gate: passed. All {applied} rules that apply are met."]
    else:
        words = [f"Verdict of the gate: not passed. {len(unmet)} of {applied} rules {_are(unmet)} not met:"]
    return [*words, *(f"- {rule.name} ({rule.outcome}): {rule.words}" for rule in unmet), _service_words(promoted)]


def refusal(promoted: Artifact | None) -> str:
    """Why the gate keeps a model out of service, as plain text; nothing where it does not, or was not asked.

    A model that somebody put into service all the same is not kept out of it.
    """
    try:
        if promoted is None or _passed(promoted) or _serves(promoted):
            return ""
        return "\n".join(gate_words(promoted))
    except StoreError:
        return ""


def gate_parts(promoted: Artifact) -> Iterator[str]:
    """The verdict, then every rule: those in the way first, with why there are such rules. Raises as `gate_words`.

    Lists and no tables: Prefect's pages cut off long cells, and these are sentences.
    """
    verdict, *rest = gate_words(promoted)
    yield f"**{escape(verdict.rstrip(':'))}** {escape(rest[-1])}"
    rules = rulings(promoted)
    in_the_way = [_told(rule) for rule in rules if rule.outcome not in HARMLESS]
    met = [_told(rule) for rule in rules if rule.outcome in HARMLESS and rule.outcome != _NOT_APPLIED]
    yield "\n".join([*in_the_way, *met, *_not_applied(rules)])


gate_sections = gate_parts


def _passed(promoted: Artifact) -> bool:
    told = contents(promoted, "verdict.json") or promoted.metrics
    return told.get("verdict") == "promote"


def _are(many: Sequence[object]) -> str:
    return "is" if len(many) == 1 else "are"


def _service_words(promoted: Artifact) -> str:
    try:
        state = _state(promoted)
    except StoreError as error:
        return f"Which model is in service cannot be told: {error.found or error.problem}"
    if state.current is None:
        now = "In service now: none."
    elif state.serves(_candidate(promoted)) or state.current == promoted.key:
        place = f" (promote/{state.current})" if state.current == promoted.key else f", as version {state.current}"
        now = f"In service now: this run's model{place}{_against_the_gate(promoted, state)}."
    else:
        now = f"In service now: another model (promote/{state.current})."
    if state.current and not Store(_root(promoted)).find(STAGE, state.current):
        now += " Its files are gone."
    return (
        f"{now} `dpo promote` under this run's configuration would put it there." if _would_go(promoted, state) else now
    )


def _against_the_gate(promoted: Artifact, state: State) -> str:
    if _passed(promoted):
        return ""
    return ", by force: the gate would refuse it" if state.is_forced() else ", though the gate would refuse it"


def _would_go(promoted: Artifact, state: State) -> bool:
    """Whether `dpo promote` would put it there: it passed, against what is in service now, and is the latest."""
    told = contents(promoted, "verdict.json") or promoted.metrics
    if not _passed(promoted) or state.serves(_candidate(promoted)) or told.get("in_service") != state.current:
        return False
    same = (each for each in Store(_root(promoted)).all(STAGE) if _service(each) == _service(promoted))
    latest = next(same, None)
    return latest is not None and latest.key == promoted.key


def _serves(promoted: Artifact) -> bool:
    return _state(promoted).serves(_candidate(promoted))


def _state(promoted: Artifact) -> State:
    """What is in service where it was judged for. Raises StoreError where that cannot be told."""
    name = _service(promoted)
    if not name:
        raise StoreError("its verdict does not say for which service it was judged", where=str(promoted.path))
    return Pointer(_root(promoted), name).state()


def _service(promoted: Artifact) -> str:
    return str(promoted.metrics.get("service") or "")


def _candidate(promoted: Artifact) -> str:
    return str(contents(promoted, HANDED_DOWN).get("candidate") or "")


def _root(promoted: Artifact) -> Path:
    return promoted.path.parent.parent


def _told(rule: Ruling) -> str:
    why = f"\\\n  *Why: {escape(rule.reason)}.*" if rule.reason else ""
    return f"- {_outcome(rule)} · {code(rule.name)}: {escape(rule.words)}.{why}"


def _not_applied(rules: Sequence[Ruling]) -> list[str]:
    """A line for each sentence in which that is said, with all rules of which it is."""
    names: dict[str, list[str]] = {}
    for rule in rules:
        if rule.outcome == _NOT_APPLIED:
            names.setdefault(rule.words, []).append(code(rule.name))
    return [f"- {_NOT_APPLIED} · {', '.join(some)}: {escape(words)}." for words, some in names.items()]


def _outcome(rule: Ruling) -> str:
    return escape(rule.outcome) if rule.outcome in HARMLESS else f"**{escape(rule.outcome)}**"
