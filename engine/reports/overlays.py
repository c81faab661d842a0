"""The curves of two trainings over each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from engine.artifact import HANDED_DOWN, Artifact
from engine.reports.drawing import AFTER, BEFORE
from engine.reports.evaluation import contents
from engine.reports.markdown import escape, is_number, number, share
from engine.reports.page import Part
from engine.reports.pictures import Curve, curves
from engine.reports.steps import steps_of

Columns = Mapping[str, Sequence[float]]

_MARGINS, _LOSS, _RIGHT = "rewards/margins", "loss", "rewards/accuracies"


def overlaid(then: Artifact | None, now: Artifact | None, apart: Mapping[str, str]) -> Iterator[Part]:
    """Margins, accuracies and loss of two train artifacts over their steps.

    Args:
        apart: why rewards or losses do not mean the same in both, as `engine.evaluation.comparison.not_comparable` has
            it. Margins are then shown without β, and losses not at all.

    Where not even what is put right means the same, nothing is drawn.

    Yields:
        Nothing where they have the same content, or where the steps of one of them are gone.
    """
    if then is None or now is None or then.digest == now.digest:
        return
    before, after = steps_of(then), steps_of(now)
    if reason := apart.get("eval_rewards/accuracies"):
        if before and after:
            yield f"Their rewards and losses are not comparable: {escape(reason)}."
        return
    yield from _margins(then, now, before, after, apart)
    yield from _drawn("Pairs of a step that are put right", _RIGHT, before, after, share)
    if reason := apart.get("eval_loss"):
        if before and after:
            yield f"Their losses are not comparable: {escape(reason)}."
        return
    yield from _drawn("Loss", _LOSS, before, after)


def _margins(
    then: Artifact, now: Artifact, before: Columns, after: Columns, apart: Mapping[str, str]
) -> Iterator[Part]:
    if "eval_rewards/margins" not in apart:
        yield from _drawn("Margins: chosen above rejected", _MARGINS, before, after)
        return
    old, new = _beta(then), _beta(now)
    if old and new:
        yield from _drawn("Margins without β, in nats", _MARGINS, _divided(before, old), _divided(after, new))


def _drawn(
    title: str, column: str, before: Columns, after: Columns, form: Callable[[object], str] = number
) -> Iterator[Part]:
    lines = [
        Curve(name, columns["step"], columns[column], colour)
        for name, columns, colour in (("then", before, BEFORE), ("now", after, AFTER))
        if column in columns
    ]
    if len(lines) == 2:
        yield curves(title, lines, form=form)


def _divided(columns: Columns, beta: float) -> Columns:
    return {name: [each / beta for each in values] if name == _MARGINS else values for name, values in columns.items()}


def _beta(artifact: Artifact) -> float:
    """The β of a training; 0 where it does not say."""
    beta = contents(artifact, HANDED_DOWN).get("beta")
    return float(beta) if is_number(beta) else 0.0
