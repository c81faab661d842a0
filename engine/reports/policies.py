"""The starting policy and the DPO policy beside each other: rates by kind of request, and some of their answers."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import PipelineError
from engine.reports.markdown import escape, number, share, table
from engine.store import Artifact

POLICIES = {"start": "starting policy", "dpo": "after DPO"}
_KINDS = {"adversarial": "harmful", "normal": "normal"}
_MEASURES: dict[str, tuple[str, Callable[[object], str]]] = {
    "refused": ("refused", share),
    "right": ("answered right", share),
    "empty": ("answered with nothing", share),
    "repetitive": ("answered in a loop", share),
    "ended": ("answered to the end", share),
    "tokens": ("mean tokens an answer", number),
}
_SHOWN_CHARACTERS = 240


def is_of_a_policy(metric: str) -> bool:
    """Whether a metric's name is `<policy>/<kind>/<what>`, and so shown by `rates`."""
    policy, _, rest = metric.partition("/")
    kind, _, what = rest.partition("/")
    return policy in POLICIES and bool(kind) and what in {*_MEASURES, "count"}


def rates(metrics: Mapping[str, Any]) -> str:
    """A table: a row for each kind of request and measure, a column for each policy; nothing without such metrics."""
    kinds = dict.fromkeys(name.split("/")[1] for name in metrics if is_of_a_policy(name))
    rows = []
    for kind, (what, (label, form)) in itertools.product(kinds, _MEASURES.items()):
        values = [metrics.get(f"{policy}/{kind}/{what}") for policy in POLICIES]
        if any(value is not None for value in values):
            shown = ["–" if value is None else form(value) for value in values]
            rows.append([f"{_kind(kind)}{_count(metrics, kind)}", label, *shown])
    return table(["requests", "", *POLICIES.values()], rows)


def answers(evaluated: Artifact, per_kind: int = 3) -> str:
    """A table of the first few prompts of each kind and what either policy said; nothing when they cannot be read."""
    from engine.preferences.schema import GENERATIONS, read_rows  # pyarrow takes a while to import

    found: dict[tuple[str, str], dict[str, str]] = {}
    try:
        for batch in read_rows(evaluated.file("generations.parquet"), GENERATIONS):
            for row in batch:
                found.setdefault((row["kind"], row["prompt"]), {}).setdefault(row["policy"], row["generation"])
    except PipelineError:
        return ""
    shown = [key for kind in dict.fromkeys(kind for kind, _ in found) for key in _first(found, kind, per_kind)]
    rows = [
        [_kind(kind), _said(prompt), *(_said(found[kind, prompt].get(policy)) for policy in POLICIES)]
        for kind, prompt in shown
    ]
    return table(["requests", "prompt", *POLICIES.values()], rows)


def _first(found: Mapping[tuple[str, str], object], kind: str, count: int) -> list[tuple[str, str]]:
    return list(itertools.islice((key for key in found if key[0] == kind), count))


def _said(text: str | None) -> str:
    if text is None:
        return "–"
    return escape(text, _SHOWN_CHARACTERS) or "*(nothing)*"


def _kind(kind: str) -> str:
    return _KINDS.get(kind) or escape(kind)


def _count(metrics: Mapping[str, Any], kind: str) -> str:
    count = metrics.get(f"dpo/{kind}/count", metrics.get(f"start/{kind}/count"))
    return "" if count is None else f" ({number(count)})"
