"""What evaluate found, in tables: the numbers over held-out pairs, by slice, and whether its confidence is earned."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import StoreError
from engine.reports import policies
from engine.reports.markdown import code, escape, is_number, number, share, table
from engine.reports.measures import PAIRS, shown
from engine.store import Artifact

_SLICES = {
    "source": "source",
    "length": "length of the answers",
    "chosen_refuses": "whether the chosen answer refuses",
    "truncated": "whether something was cut",
}
_OF_A_SLICE = {
    "eval_rewards/accuracies": "put right",
    "eval_longer_wins": "by the longer answer",
    "eval_rewards/margins": "mean margin",
    "eval_log_ratio_per_token/chosen": "chosen: nats per token",
}


def contents(artifact: Artifact, name: str) -> Mapping[str, Any]:
    """A JSON object that an artifact holds; empty where the file is gone or is none."""
    try:
        found = json.loads(artifact.file(name).read_text("utf-8"))
    except (StoreError, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def evaluation_sections(artifact: Artifact) -> Iterator[str]:
    """The parts of evaluate's page in markdown; of an older artifact those that it has numbers for.

    Raises:
        StoreError: its manifest cannot be read.
    """
    metrics, written = artifact.metrics, contents(artifact, "metrics.json")
    parts = {
        "On the held-out pairs": pairs_table(metrics),
        "What the models answer": policies.rates(metrics),
        "By set of prompts": policies.rates_by_set(metrics),
        "Held-out pairs by slice": slices_table(written.get("slices")),
        "Is it as often right as it is sure?": calibration_table(written.get("calibration")),
    }
    for title, part in parts.items():
        if part:
            yield f"**{title}**\n\n{part}"


def pairs_table(metrics: Mapping[str, Any]) -> str:
    """The numbers over held-out pairs under names in words, with 95 % intervals, and the recorded name of each."""
    rows = [[label, escape(shown(metrics, name)), code(name)] for name, (label, _) in PAIRS.items() if name in metrics]
    return table(["", "number (95 % interval)", "name"], rows)


def slices_table(slices: object) -> str:
    """A row for each slice; nothing without slices."""
    rows = []
    for each in _objects(slices):
        metrics = each.get("metrics")
        of = {**metrics, "intervals": each.get("intervals")} if isinstance(metrics, Mapping) else {}
        kind = str(each.get("slice"))
        what = [escape(_SLICES.get(kind, kind)), escape(each.get("value", "–")), number(each.get("pairs", "–"))]
        rows.append([*what, *(escape(shown(of, name)) for name in _OF_A_SLICE)])
    return table(["slice", "", "pairs", *_OF_A_SLICE.values()], rows)


def calibration_table(bins: object) -> str:
    """A row for each bin of confidence σ(margin) or 1 − σ(margin), whichever is larger; nothing without bins."""
    rows = [
        [
            f"{share(each['low'])} to {share(each['high'])}",
            number(each.get("pairs", "–")),
            escape(share(each.get("confidence", "–"))),
            escape(share(each.get("accuracy", "–"))),
        ]
        for each in _objects(bins)
        if is_number(each.get("low")) and is_number(each.get("high"))
    ]
    return table(["sure between", "pairs", "sure, on average", "right"], rows)


def _objects(values: object) -> list[Mapping[str, Any]]:
    listed = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    return [each for each in listed if isinstance(each, Mapping)]
