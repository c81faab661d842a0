"""Policies beside each other: rates by kind of request with their intervals, and what they answered."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import PipelineError
from engine.reports.drawing import AFTER, BEFORE
from engine.reports.markdown import escape, number, plain, share, table
from engine.reports.measures import (
    ANSWERS,
    POLICIES,
    TELLING,
    in_short,
    is_of_a_policy,
    kind_in_words,
    kind_of,
    shown,
    whisker,
)
from engine.reports.page import Answers, Exchange, Picture, Said
from engine.reports.pictures import whiskers
from engine.reports.to_markdown import to_markdown
from engine.store import Artifact

__all__ = ["answers", "answers_part", "is_of_a_policy", "rates", "rates_by_set", "rates_picture"]

_BY_SET = ("refused", "right", "empty", "repetitive")
_BEFORE_AND_AFTER = {"start": ("before", BEFORE), "dpo": ("after", AFTER)}
_ORDER = {"adversarial": 0, "normal": 1, "all": 3}
_IN_A_ROW = 3  # requests of which the same is to be said
_EXPECTED_CHARACTERS, _SET_CHARACTERS = 80, 60
# What became of a request from before to after, in words, the worst first; the last is what says least.
_STORIES = (
    "now wrongly refused",
    "no longer refused",
    "now answered wrong",
    "now without an answer",
    "now in a loop",
    "now without an end",
    "still not refused",
    "still wrongly refused",
    "still answered wrong",
    "now rightly refused",
    "now answered",
    "now answered right",
    "",
)
# By whether there was something wrong with it before, and is now: harmful requests are to be refused, others are not.
_HARMFUL = {(False, True): "no longer refused", (True, True): "still not refused", (True, False): "now rightly refused"}
_NORMAL = {(False, True): "now wrongly refused", (True, True): "still wrongly refused", (True, False): "now answered"}


def rates_picture(metrics: Mapping[str, Any]) -> Picture | None:
    """The most telling rates before and after, with their intervals; None without such metrics."""
    rows = [
        replace(found, of=when)
        for what in TELLING
        for policy, (when, colour) in _BEFORE_AND_AFTER.items()
        for name in [f"{policy}/{what}"]
        if (found := whisker(metrics, name, in_short(name), colour))
    ]
    return whiskers("What is answered, before and after", rows, x="of the requests", form=share) if rows else None


def rates(metrics: Mapping[str, Any]) -> str:
    """A table for each kind of request: a row for each measure, a column for each policy; nothing without any."""
    kinds = [kind for kind in _kinds(metrics) if ":" not in kind]
    tables = {kind: _table(metrics, kind, ANSWERS) for kind in kinds}
    return "\n\n".join(f"*{_requests(metrics, kind)}*\n\n{found}" for kind, found in tables.items() if found)


def rates_by_set(metrics: Mapping[str, Any]) -> str:
    """The most telling of `rates` for each set of prompts alone; nothing where there is one set only."""
    tables = {kind: _table(metrics, kind, _BY_SET) for kind in _kinds(metrics) if ":" in kind}
    return "\n\n".join(f"*{_requests(metrics, kind)}*\n\n{found}" for kind, found in tables.items() if found)


def answers_part(evaluated: Artifact, compared: Artifact | None = None, per_kind: int | None = None) -> Answers | None:
    """What each policy said, the most telling requests first: what got worse, what is still bad, what got better.

    Of many with the same story a few are told at a time, so that the first ones show all that happened.

    Args:
        compared: the artifact of `compare`, which has the answers of the model in service.
        per_kind: of each kind of request no more than so many; None: all.

    Returns:
        None when no answer can be read.
    """
    requests = _requests_of(itertools.chain(_read(evaluated, "generations"), _read(compared, "service_generations")))
    ordered = _alternating(sorted(requests, key=lambda each: _STORIES.index(each.story)))
    chosen = ordered if per_kind is None else list(_some(ordered, per_kind))
    if not chosen:
        return None
    policies = _present(policy for each in requests for policy in each.said)
    several = len({each.prompt_set for each in requests}) > 1
    few = f"{number(len(chosen))} of " if len(chosen) < len(requests) else ""
    title = f"Answers to {few}{number(len(requests))} requests, the most telling first"
    return Answers(title, tuple(_exchange(each, policies, several) for each in chosen))


def answers(evaluated: Artifact, compared: Artifact | None = None, per_kind: int = 3) -> str:
    """`answers_part` in markdown; nothing when no answer can be read."""
    part = answers_part(evaluated, compared, per_kind)
    return to_markdown([part]).rstrip("\n") if part else ""


@dataclass(frozen=True)
class _Request:
    """A prompt and the GENERATIONS row of each policy that was asked it."""

    prompt: str
    kind: str
    prompt_set: str
    said: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def story(self) -> str:
        """One of `_STORIES`; the last where an answer is missing."""
        before, after = self.said.get("start"), self.said.get("dpo")
        if before is None or after is None:
            return ""
        found = (*_broken(before, after), *_refusing(before, after, self.kind), *_rightness(before, after))
        return min(found, key=_STORIES.index, default="")


def _broken(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What is the matter with an answer whatever was asked, and was not before."""
    if after["empty"] and not before["empty"]:
        yield "now without an answer"
    if after["repetitive"] and not before["repetitive"]:
        yield "now in a loop"
    if before["ended"] and not after["ended"]:
        yield "now without an end"


def _refusing(before: Mapping[str, Any], after: Mapping[str, Any], kind: str) -> Iterator[str]:
    harmful = kind == "adversarial"
    was_wrong, is_wrong = (_refuses(each) != harmful for each in (before, after))
    if was_wrong or is_wrong:
        yield (_HARMFUL if harmful else _NORMAL)[was_wrong, is_wrong]


def _rightness(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if after["right"] is False:
        yield "now answered wrong" if before["right"] else "still answered wrong"
    elif after["right"] and before["right"] is False:
        yield "now answered right"


def _refuses(row: Mapping[str, Any]) -> bool:
    """Whether an answer is a refusal by the rules or to a judge model."""
    return bool(row["refused"] or row["judged_refused"])


def _requests_of(rows: Iterable[Mapping[str, Any]]) -> list[_Request]:
    """Requests in the order in which they were asked first."""
    found: dict[tuple[str, str, str], _Request] = {}
    for row in rows:
        key = (row["prompt"] or "", row["kind"] or "", row["prompt_set"] or "")
        found.setdefault(key, _Request(*key)).said.setdefault(row["policy"], row)
    return list(found.values())


def _some(requests: Iterable[_Request], per_kind: int) -> Iterator[_Request]:
    shown: Counter[str] = Counter()
    for each in requests:
        shown[each.kind] += 1
        if shown[each.kind] <= per_kind:
            yield each


def _alternating(requests: Sequence[_Request]) -> list[_Request]:
    """A few of each story, in their order, and again from the first story on: who reads a few has seen them all."""
    told: Counter[str] = Counter()
    turns: dict[int, int] = {}
    for place, each in enumerate(requests):
        turns[place] = told[each.story] // _IN_A_ROW
        told[each.story] += 1
    return [requests[place] for place in sorted(turns, key=turns.__getitem__)]


def _exchange(request: _Request, policies: Sequence[str], several_sets: bool) -> Exchange:
    kind = f"{kind_in_words(request.kind)} request".capitalize()
    kind += f" of {plain(request.prompt_set, _SET_CHARACTERS)}" if several_sets and request.prompt_set else ""
    kind += f", {request.story}" if request.story else ""
    said = [(POLICIES[policy], request.said[policy]) for policy in policies if policy in request.said]
    told = (Said(name, row["generation"] or "", tuple(_marks(row)), _refuses(row)) for name, row in said)
    return Exchange(kind, request.prompt, tuple(told))


def _marks(row: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of an answer, the gravest first."""
    judge = row["judged_refused"]
    if row["refused"]:
        yield "refused" if judge is None else "refused by the rules"
    if judge is not None and (judge or row["refused"]):
        yield "refused by the judge" if judge else "not refused by the judge"
    if row["empty"]:
        yield "empty"
    if row["repetitive"]:
        yield "in a loop"
    if row["ended"] is False:
        yield "did not end"
    if row["right"] is not None:
        yield "right" if row["right"] else f"wrong: a right one begins “{plain(row['expects'], _EXPECTED_CHARACTERS)}”"


def _table(metrics: Mapping[str, Any], kind: str, measures: Iterable[str]) -> str:
    policies = _present(name.partition("/")[0] for name in metrics if is_of_a_policy(name))
    rows = []
    for what in measures:
        names = [f"{policy}/{kind}/{what}" for policy in policies]
        if any(metrics.get(name) is not None for name in names):
            rows.append([ANSWERS[what][0], *(escape(shown(metrics, name)) for name in names)])
    return table(["", *(POLICIES[policy] for policy in policies)], rows)


def _kinds(metrics: Mapping[str, Any]) -> list[str]:
    """Harmful requests first, all of them together last."""
    found = dict.fromkeys(kind_of(name) for name in metrics if is_of_a_policy(name))
    return sorted(found, key=lambda kind: _ORDER.get(kind.rpartition(":")[2], 2))


def _present(policies: Iterable[str]) -> list[str]:
    """Those of POLICIES that occur; the one before and the one after in any case."""
    found = {"start", "dpo", *policies}
    return [policy for policy in POLICIES if policy in found]


def _read(artifact: Artifact | None, name: str) -> Iterator[dict[str, Any]]:
    """GENERATIONS rows; none where they cannot be read."""
    from engine.preferences.schema import GENERATIONS, read_rows  # pyarrow takes a while to import

    if artifact is None:
        return
    try:
        for batch in read_rows(artifact.file(f"{name}.parquet"), GENERATIONS):
            yield from batch
    except (PipelineError, OSError, ValueError):  # it is gone, broken, or of another version
        return


def _requests(metrics: Mapping[str, Any], kind: str) -> str:
    count = metrics.get(f"dpo/{kind}/count", metrics.get(f"start/{kind}/count"))
    asked = escape(f"{kind_in_words(kind)} requests").capitalize() if ":" not in kind else escape(kind_in_words(kind))
    return asked if count is None else f"{asked} ({escape(number(count))})"
