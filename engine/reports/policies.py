"""Policies beside each other: rates by kind of request with their intervals, and some of their answers."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.errors import PipelineError
from engine.reports.markdown import escape, number, table
from engine.reports.measures import ANSWERS, POLICIES, is_of_a_policy, kind_in_words, kind_of, shown
from engine.store import Artifact

__all__ = ["answers", "is_of_a_policy", "rates", "rates_by_set"]

_BY_SET = ("refused", "right", "empty", "repetitive")
_SHOWN_CHARACTERS = 240


def rates(metrics: Mapping[str, Any]) -> str:
    """A table: a row for each kind of request and measure, a column for each policy; nothing without such metrics."""
    return _table(metrics, [kind for kind in _kinds(metrics) if ":" not in kind], ANSWERS)


def rates_by_set(metrics: Mapping[str, Any]) -> str:
    """The most telling of `rates` for each set of prompts alone; nothing where there is one set only."""
    return _table(metrics, [kind for kind in _kinds(metrics) if ":" in kind], _BY_SET)


def answers(evaluated: Artifact, compared: Artifact | None = None, per_kind: int = 3) -> str:
    """A table of the first few prompts of each kind and what each policy said; nothing when they cannot be read.

    Args:
        compared: the artifact of `compare`, which has the answers of the model in service.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in itertools.chain(_said_by(evaluated, "generations"), _said_by(compared, "service_generations")):
        found.setdefault((row["kind"], row["prompt"]), {}).setdefault(row["policy"], row["generation"])
    policies = _present(policy for said in found.values() for policy in said)
    shown = [key for kind in dict.fromkeys(kind for kind, _ in found) for key in _first(found, kind, per_kind)]
    rows = [
        [escape(kind_in_words(kind)), _said(prompt), *(_said(found[kind, prompt].get(policy)) for policy in policies)]
        for kind, prompt in shown
    ]
    return table(["requests", "prompt", *(POLICIES[policy] for policy in policies)], rows)


def _table(metrics: Mapping[str, Any], kinds: Iterable[str], measures: Iterable[str]) -> str:
    policies = _present(name.partition("/")[0] for name in metrics if is_of_a_policy(name))
    rows = []
    for kind, what in itertools.product(kinds, measures):
        names = [f"{policy}/{kind}/{what}" for policy in policies]
        if any(metrics.get(name) is not None for name in names):
            cells = [escape(shown(metrics, name)) for name in names]
            rows.append([f"{escape(kind_in_words(kind))}{_count(metrics, kind)}", ANSWERS[what][0], *cells])
    return table(["requests", "", *(POLICIES[policy] for policy in policies)], rows)


def _kinds(metrics: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(kind_of(name) for name in metrics if is_of_a_policy(name)))


def _present(policies: Iterable[str]) -> list[str]:
    """Those of POLICIES that occur; the one before and the one after in any case."""
    found = {"start", "dpo", *policies}
    return [policy for policy in POLICIES if policy in found]


def _said_by(artifact: Artifact | None, name: str) -> Iterator[dict[str, Any]]:
    from engine.preferences.schema import GENERATIONS, read_rows  # pyarrow takes a while to import

    if artifact is None:
        return
    try:
        for batch in read_rows(artifact.file(f"{name}.parquet"), GENERATIONS):
            yield from batch
    except (PipelineError, OSError, ValueError):  # it is gone, broken, or of another version
        return


def _first(found: Mapping[tuple[str, str], object], kind: str, count: int) -> list[tuple[str, str]]:
    return list(itertools.islice((key for key in found if key[0] == kind), count))


def _said(text: str | None) -> str:
    if text is None:
        return "–"
    return escape(text, _SHOWN_CHARACTERS) or "*(nothing)*"


def _count(metrics: Mapping[str, Any], kind: str) -> str:
    count = metrics.get(f"dpo/{kind}/count", metrics.get(f"start/{kind}/count"))
    return "" if count is None else f" ({number(count)})"
