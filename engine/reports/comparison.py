"""How this run's model stands against the one in service, on the same held-out pairs and prompts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.errors import PipelineError
from engine.reports.drawing import AFTER, PLAIN, SERVICE
from engine.reports.evaluation import contents
from engine.reports.markdown import escape, is_number, number, points, table
from engine.reports.measures import PAIRS, TELLING, difference_shown, drawable, in_short, in_words, shown
from engine.reports.page import Part, Picture
from engine.reports.pictures import Mark, Whisker, whiskers
from engine.store import Artifact

DIFFERENCE = "difference/"  # what compare puts in front of a metric's name
_TOLD = ("eval_rewards/accuracies", "eval_chosen_less_likely", *(f"dpo/{what}" for what in TELLING))
_HOW_TO_READ = (
    "Differences come with their 95 % intervals, those of shares in percentage points. "
    "What is coloured is hardly chance: its interval leaves out 0."
)


def differences(compared: Artifact | None) -> Mapping[str, Mapping[str, Any]]:
    """Per metric `{"value", "low", "high"}`: this run's model less the model in service; empty where there is none.

    Raises:
        StoreError: the artifact cannot be read.
    """
    if compared is None:
        return {}
    found = contents(compared, "comparison.json").get("differences")
    if isinstance(found, Mapping):
        return found
    metrics, ends = compared.metrics, compared.metrics.get("intervals") or {}
    return {
        name.removeprefix(DIFFERENCE): {"value": value} | dict(zip(("low", "high"), ends.get(name, ()), strict=False))
        for name, value in metrics.items()
        if name.startswith(DIFFERENCE)
    }


def comparison_words(compared: Artifact) -> str:
    """On what the model in service was compared with this run's, or why it was not; as plain text.

    Raises:
        StoreError: the artifact cannot be read.
    """
    told = contents(compared, "comparison.json") or compared.metrics
    service = told.get("in_service")
    if not service:
        return "No model was in service before, so there is none to compare with."
    name = service.get("version", "?") if isinstance(service, Mapping) else service
    if told.get("unavailable"):
        return f"The model in service (promote/{name}) could not be evaluated: {told['unavailable']}"
    words = f"Compared with the model in service (promote/{name}) on {number(told.get('pairs', 0))} held-out pairs."
    if is_number(told.get("trained_on")) and told["trained_on"]:
        words += f" {number(told['trained_on'])} more were left out: that model was trained on their prompts."
    return words


def comparison_parts(compared: Artifact) -> Iterator[Part]:
    """compare's page. Raises StoreError as `comparison_words`."""
    yield escape(comparison_words(compared))
    told, found = contents(compared, "comparison.json"), differences(compared)
    if picture := differences_picture(found):
        yield picture
    if found:
        yield _HOW_TO_READ
    telling = [name for name in _TOLD if name in found]
    others = sorted((name for name in found if name not in telling and not name.startswith("start/")), key=_place)
    parts = {
        "": "" if _TOLD[0] in _object(told.get("not_comparable")) else _flips(compared),
        "This run's model and the one in service": _differences_table(told, found, telling),
        "All else that was compared": _differences_table(told, found, others),
        "Not comparable": _not_comparable(told.get("not_comparable")),
    }
    for title, part in parts.items():
        if part:
            yield f"**{title}**\n\n{part}" if title else part


comparison_sections = comparison_parts


def differences_picture(found: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    """The most telling differences of shares around 0, the model in service, in points; None without any.

    Args:
        found: see `differences`.
    """
    rows = []
    for name in _TOLD:
        value, low, high = (_object(found.get(name)).get(end) for end in ("value", "low", "high"))
        if drawable(value) and drawable(low) and drawable(high):
            rows.append(Whisker(in_short(name), value, low, high, PLAIN if low <= 0 <= high else AFTER))
    marks = [Mark(0, "the one in service", SERVICE)]
    title = "This run's model against the one in service"
    return whiskers(title, rows, x="percentage points", marks=marks, form=points) if rows else None


def _differences_table(told: Mapping[str, Any], found: Mapping[str, Any], names: Iterable[str]) -> str:
    tonight, service = (_object(told.get(side)) for side in ("tonight", "service"))
    rows = [
        [escape(in_words(name)), escape(f"{shown(tonight, name)} / {shown(service, name)}"), escape(difference)]
        for name in names
        if (difference := difference_shown(name, found[name])) != "–"
    ]
    return table(["", "this run / in service", "difference"], rows)


def _not_comparable(told: object) -> str:
    """A line for each reason with all that it holds for, since that is mostly the same for several."""
    names: dict[str, list[str]] = {}
    for name, why in _object(told).items():
        names.setdefault(str(why), []).append(in_words(name))
    return "\n".join(f"- {escape(', '.join(some))}: {escape(why)}." for why, some in names.items())


def _flips(compared: Artifact) -> str:
    """How many pairs one of both puts right and the other does not; nothing where that cannot be read."""
    import pyarrow.compute as pc

    from engine.preferences.schema import COMPARED, read_table  # pyarrow takes a while to import

    try:
        pairs = read_table(compared.file("pairs.parquet"), COMPARED, ["tonight_right", "service_right"])
    except (PipelineError, OSError, ValueError):  # it is gone, broken, or of another version
        return ""
    now, before = pairs["tonight_right"], pairs["service_right"]
    better, worse = (pc.sum(pc.greater(*each)).as_py() or 0 for each in ((now, before), (before, now)))
    return (
        f"Of {number(pairs.num_rows)} held-out pairs this run's model judges {number(better)} better than the one in"
        f" service, and {number(worse)} worse."
    )


def _place(metric: str) -> int:
    """Pair metrics in their order, then all others in theirs."""
    return list(PAIRS).index(metric) if metric in PAIRS else len(PAIRS)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
