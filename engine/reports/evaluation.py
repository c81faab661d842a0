"""What evaluate found: how it judges held-out pairs, by slice, whether its confidence is earned, and where it errs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import PipelineError, StoreError
from engine.reports import policies
from engine.reports.drawing import AFTER, BEFORE, CHOSEN, REJECTED
from engine.reports.histograms import Values, histogram
from engine.reports.markdown import escape, is_number, number, plain, share, table
from engine.reports.measures import PAIRS, drawable, shown, whisker
from engine.reports.mistakes import worst_pairs
from engine.reports.page import Part, Picture
from engine.reports.pictures import Mark, Whisker, reliability, whiskers
from engine.store import Artifact

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_SLICES = {
    ("chosen_refuses", "refuses"): "chosen: a refusal",
    ("chosen_refuses", "answers"): "chosen: an answer",
    ("truncated", "cut"): "something was cut",
    ("truncated", "whole"): "nothing was cut",
}
_NAME_CHARACTERS = 40  # of a slice in a table
_THIRDS = ("shortest", "middle", "longest")
_OF_A_SLICE = {
    "eval_rewards/accuracies": "put right",
    "eval_longer_wins": "by the longer answer",
    "eval_rewards/margins": "mean margin",
    "eval_log_ratio_per_token/chosen": "chosen: nats per token",
}
_RIGHT, _BASELINE = "eval_rewards/accuracies", "eval_length_baseline"
_NUMBERS = ("chosen_reward", "rejected_reward", "margin")
_TOKENS = ("chosen_scored_tokens", "rejected_scored_tokens")
_LOGPS = tuple(f"{model}_{side}_logps" for model in ("policy", "ref") for side in ("chosen", "rejected"))


def contents(artifact: Artifact, name: str) -> Mapping[str, Any]:
    """A JSON object that an artifact holds; empty where the file is gone or is none."""
    try:
        found = json.loads(artifact.file(name).read_text("utf-8"))
    except (StoreError, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def evaluation_parts(artifact: Artifact) -> Iterator[Part]:
    """evaluate's page: pictures, the pairs that it gets most wrong, tables; what an artifact lacks is left out.

    What the models answered is `policies.answers_part`.

    Raises:
        StoreError: its manifest cannot be read.
    """
    metrics, written = artifact.metrics, contents(artifact, "metrics.json")
    pairs = _pairs(artifact)
    if pairs is not None:
        yield from pair_pictures(pairs, _beta(metrics, written))
    for picture in (
        slices_picture(metrics, written.get("slices")),
        calibration_picture(metrics, written.get("calibration")),
        policies.rates_picture(metrics),
    ):
        if picture is not None:
            yield picture
    worst = worst_pairs(artifact, pairs) if pairs is not None else None
    if worst is not None:
        yield worst
    yield from _tables(metrics, written)


evaluation_sections = evaluation_parts


def pair_pictures(pairs: "pa.Table", beta: object) -> Iterator[Picture]:
    """Rewards, margins and changes of log-probability over EVALUATED rows; `beta` is told where it is a number."""
    get = {name: pairs[name].to_numpy() for name in _NUMBERS} | _likelier(pairs)
    scaled = f" (β = {number(beta)})" if is_number(beta) else ""
    sides = (("chosen", CHOSEN), ("rejected", REJECTED))
    yield histogram(
        f"Margins: reward of chosen less rejected{scaled}",
        [Values("pairs", get["margin"], AFTER)],
        x="margin",
        marks=[Mark(0, "no preference")],
    )
    yield histogram(
        f"Rewards of chosen and rejected answers{scaled}",
        [Values(side, get[f"{side}_reward"], colour) for side, colour in sides],
        x="reward",
        y="answers",
    )
    yield histogram(
        "Change of log-probability by the training",
        [Values(side, get[f"{side}_per_token"], colour) for side, colour in sides],
        x="nats per token",
        y="answers",
        marks=[Mark(0, "as likely as before")],
    )


def _likelier(pairs: "pa.Table") -> "dict[str, np.ndarray[Any, Any]]":
    """Change of log-probability in nats per scored token, (N,) for each side."""
    import numpy as np

    get = {name: pairs[name].to_numpy() for name in (*_LOGPS, *_TOKENS)}
    with np.errstate(invalid="ignore"):  # what is not finite is no part of the picture
        return {
            f"{side}_per_token": (get[f"policy_{side}_logps"] - get[f"ref_{side}_logps"])
            / get[f"{side}_scored_tokens"].clip(1)
            for side in ("chosen", "rejected")
        }


def slices_picture(metrics: Mapping[str, Any], slices: object) -> Picture | None:
    """How many pairs are put right, of all and of each slice, against a rule that only looks at the length."""
    marks = [
        Mark(metrics[name], label, colour)
        for name, label, colour in ((_RIGHT, "all pairs", AFTER), (_BASELINE, "by length alone", BEFORE))
        if drawable(metrics.get(name))
    ]
    rows = [whisker(metrics, _RIGHT, "all pairs", AFTER)]
    rows += [whisker(of, _RIGHT, name, AFTER) for name, of in _by_slice(slices)]
    found: list[Whisker] = [row for row in rows if row is not None]
    return whiskers("Held-out pairs put right", found, x="of the pairs", marks=marks, form=share) if found else None


def calibration_picture(metrics: Mapping[str, Any], bins: object) -> Picture | None:
    """How often it is right beside how sure it is; None without a bin that can be drawn."""
    read = [(each.get("confidence"), each.get("accuracy"), each.get("pairs")) for each in _objects(bins)]
    drawn = [
        (float(sure), float(right), int(pairs))
        for sure, right, pairs in read
        if drawable(sure) and drawable(right) and drawable(pairs) and pairs >= 1
    ]
    error = metrics.get("eval_calibration_error")
    gap = f" (mean gap {share(error)})" if is_number(error) else ""
    title = f"As often right as it is sure?{gap}"
    return reliability(title, drawn, x="how sure it is", y="how often it is right") if drawn else None


def pairs_table(metrics: Mapping[str, Any]) -> str:
    """The numbers over held-out pairs under names in words, with 95 % intervals."""
    rows = [[label, escape(shown(metrics, name))] for name, (label, _) in PAIRS.items() if name in metrics]
    return table(["", "number (95 % interval)"], rows)


def slices_table(slices: object) -> str:
    """Two tables with a row for each slice, since one of both would be too wide for a page; nothing without slices."""
    found, names = list(_by_slice(slices)), list(_OF_A_SLICE)
    return "\n\n".join(
        table(
            ["slice (pairs)", *(_OF_A_SLICE[name] for name in some)],
            [
                [
                    escape(f"{plain(label, _NAME_CHARACTERS)} ({number(of['pairs'])})"),
                    *(escape(shown(of, name)) for name in some),
                ]
                for label, of in found
            ],
        )
        for some in (names[:2], names[2:])
    ).strip()


def calibration_table(bins: object) -> str:
    """A row for each bin of confidence σ(margin) or 1 − σ(margin), whichever is larger; nothing without bins."""
    rows = [
        [
            f"{share(each['low'])} to {share(each['high'])}",
            escape(number(each.get("pairs", "–"))),
            escape(share(each.get("confidence", "–"))),
            escape(share(each.get("accuracy", "–"))),
        ]
        for each in _objects(bins)
        if is_number(each.get("low")) and is_number(each.get("high"))
    ]
    return table(["sure between", "pairs", "on average", "right"], rows)


def _tables(metrics: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[str]:
    parts = {
        "On the held-out pairs": pairs_table(metrics),
        "Held-out pairs by slice": slices_table(written.get("slices")),
        "Is it as often right as it is sure?": calibration_table(written.get("calibration")),
        "What the models answer": policies.rates(metrics),
        "By set of prompts": policies.rates_by_set(metrics),
    }
    for title, part in parts.items():
        if part:
            yield f"**{title}**\n\n{part}"


def _by_slice(slices: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name of each slice with its metrics, their `intervals`, and `pairs`; those of one kind in their order."""
    for each in sorted(_objects(slices), key=_place):
        metrics, kind, value = each.get("metrics"), str(each.get("slice")), str(each.get("value", "–"))
        of = {**metrics, "intervals": each.get("intervals")} if isinstance(metrics, Mapping) else {}
        yield _slice_name(kind, value), {**of, "pairs": each.get("pairs", "–")}


def _slice_name(kind: str, value: str) -> str:
    if kind == "length":
        return value.replace(" third", "", 1)
    return _SLICES.get((kind, value), value if kind == "source" else f"{kind}: {value}")


def _place(slice_: Mapping[str, Any]) -> tuple[bool, int]:
    """Slices by length come last, from the shortest to the longest; all others stay in their order."""
    third = str(slice_.get("value")).partition(" ")[0]
    by_length = slice_.get("slice") == "length"
    return by_length, _THIRDS.index(third) if by_length and third in _THIRDS else 0


def _pairs(artifact: Artifact) -> "pa.Table | None":
    """EVALUATED rows without what no picture needs, which are few bytes a pair; None where there are none to read."""
    from engine.preferences.schema import EVALUATED, read_table  # pyarrow takes a while to import

    columns = [*_NUMBERS, *_LOGPS, *_TOKENS, "pair_id", "source", "chosen_refuses"]
    try:
        pairs = read_table(artifact.file("pairs.parquet"), EVALUATED, columns)
    except (PipelineError, OSError, ValueError):  # it is gone, broken, or of another version
        return None
    return pairs if pairs.num_rows else None


def _beta(metrics: Mapping[str, Any], written: Mapping[str, Any]) -> object:
    identity = written.get("identity")
    return metrics.get("beta", identity.get("beta") if isinstance(identity, Mapping) else None)


def _objects(values: object) -> list[Mapping[str, Any]]:
    listed = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    return [each for each in listed if isinstance(each, Mapping)]
