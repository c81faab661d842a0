"""What changed between two runs: told, made and measured differently. `then` is the one that `now` is held against."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.artifact import HANDED_DOWN, Artifact
from engine.reports.changes import (
    WHERE_AND_HOW,
    change_table,
    change_words,
    configuration_changes,
    environment_changes,
    stage_table,
    stage_words,
)
from engine.reports.data_since import data_parts, data_words
from engine.reports.flips import changed_answers
from engine.reports.markdown import plain
from engine.reports.moves import Moves, move_parts, move_words
from engine.reports.overlays import overlaid
from engine.reports.page import Part, Section
from engine.reports.recorded import began, came_to, recorded
from engine.reports.results import reasons_apart, results

if TYPE_CHECKING:
    from engine.runs import RunRecord

_FIRST = "No run of this profile completed and was evaluated before this one, so there is nothing to compare it with."
_NOTHING = "Nothing changed: configuration, data, code and versions are the same."
_STATES = {"failed": "failed", "crashed": "crashed", "cancelled": "was cancelled", "running": "has not ended"}
_TOKENIZER = "tokenizer/"


def previous(record: "RunRecord", root: Path) -> "RunRecord | None":
    """The latest run before this one of its profile that completed and was evaluated; None where there is none.

    Args:
        root: the root of the artifacts, below which the records of the runs are.
    """
    from engine.nights import earlier  # it reads records, which import the reports

    return next((run for run in earlier(record, root) if run.state == "completed" and came_to(run, "evaluate")), None)


def since_words(record: "RunRecord", other: "RunRecord | None" = None) -> list[str]:
    """What changed, as at most five lines of plain text: results, settings and data before all else.

    The last of them says against which run, what has to be known of that one, and what was made anew.

    Args:
        other: the run that it is held against; `previous` where None is given.
    """
    then = other or previous(record, record.folder.parent.parent)
    if then is None:
        return [_FIRST]
    changed = [*_configuration(then, record), *_data(then, record), *_environment(then, record)]
    last = f"{_which(then, record)} {stage_words(then, record)}"
    return [plain(words) for words in (_results(then, record), *(changed or [_NOTHING]), last)]


def since_sections(record: "RunRecord", other: "RunRecord") -> list[Section]:
    """What changed, in full; a section only where there is more to tell than `since_words` does."""
    found = (
        Section("Results, then and now", tuple(_measured(other, record))),
        Section("Trainings, one over the other", tuple(_trained(other, record))),
        Section("Answers that changed", tuple(_answered(other, record))),
        Section("Configuration that changed", tuple(_configured(other, record))),
        Section("Data that changed", tuple(data_parts(*_both(other, record, "tokenize")))),
        Section("Stages, then and now", (stage_table(other, record),)),
        Section("Versions that changed", (change_table(environment_changes(other, record)),)),
    )
    kept = (Section(each.title, tuple(part for part in each.parts if part)) for each in found)
    return [section for section in kept if section.parts]


def _which(then: "RunRecord", now: "RunRecord") -> str:
    """Against which run, and what has to be known of that one."""
    told = [f"Compared with run {then.id}, which began {began(then)}"]
    if then.origin != now.origin:
        told.append(f"is of another profile, {then.profile}")
    if then.state != "completed":
        told.append(_STATES.get(then.state) or f"is {then.state}")
    if then.began > now.began:
        told.append("is the newer of the two")
    return f"{_listed(told)}."


def _listed(told: Sequence[str]) -> str:
    return f"{', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else told[0]


def _results(then: "RunRecord", now: "RunRecord") -> str:
    found = _moves(then, now)
    return _missing(then, now) if found is None else move_words(found)


def _moves(then: "RunRecord", now: "RunRecord") -> Moves | None:
    """None where nothing is left of one of the two evaluations."""
    before, after = _both(then, now, "evaluate")
    if before is None or after is None:
        return None
    return results(before, after, same_tokens=_same_tokens(*_both(then, now, "tokenize")))


def _missing(then: "RunRecord", now: "RunRecord") -> str:
    """Why there are no results to compare."""
    for run, name in ((now, "This run"), (then, "The other run")):
        if not came_to(run, "evaluate"):
            return f"{name} was not evaluated, so its results cannot be told."
    return "The evaluation of one of the two was removed, so whether results moved cannot be told."


def _same_tokens(then: Artifact | None, now: Artifact | None) -> bool:
    """Whether two tokenize artifacts, whole or pruned, write the same text in the same ids."""
    return then is not None and now is not None and _writing(then) == _writing(now)


def _writing(tokenized: Artifact) -> dict[str, str]:
    """The digests of the tokenizer's files and of what says the template and the limits."""
    files = tokenized.manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.startswith((_TOKENIZER, HANDED_DOWN))}


def _configuration(then: "RunRecord", now: "RunRecord") -> list[str]:
    found = configuration_changes(then, now)
    telling = [change for change in found if not change.name.startswith(WHERE_AND_HOW)]
    if telling:
        return [f"Other settings: {change_words(telling)}."]
    return [f"Other settings, of where and how fast alone: {change_words(found)}."] if found else []


def _data(then: "RunRecord", now: "RunRecord") -> list[str]:
    return [words] if (words := data_words(*_both(then, now, "tokenize"))) else []


def _environment(then: "RunRecord", now: "RunRecord") -> list[str]:
    found = environment_changes(then, now)
    return [f"Other versions: {change_words(found)}."] if found else []


def _measured(then: "RunRecord", now: "RunRecord") -> Iterator[Part]:
    found = _moves(then, now)
    if found is not None and not found.same:
        yield from move_parts(found)


def _trained(then: "RunRecord", now: "RunRecord") -> Iterator[Part]:
    before, after = _both(then, now, "evaluate")
    apart = reasons_apart(before, after) if before and after else {}
    yield from overlaid(*_both(then, now, "train"), apart)


def _answered(then: "RunRecord", now: "RunRecord") -> Iterator[Part]:
    before, after = _both(then, now, "evaluate")
    if before and after and before.digest != after.digest and (changed := changed_answers(before, after)):
        yield changed


def _configured(then: "RunRecord", now: "RunRecord") -> Iterator[Part]:
    yield change_table(configuration_changes(then, now))


def _both(then: "RunRecord", now: "RunRecord", stage: str) -> tuple[Artifact | None, Artifact | None]:
    return recorded(then, stage), recorded(now, stage)
