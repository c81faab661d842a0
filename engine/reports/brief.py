"""What a newcomer asks of a run, answered in a sentence or two each."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.artifact import Artifact
from engine.errors import StoreError
from engine.reports.gate import gate_words
from engine.reports.markdown import block, code, escape
from engine.reports.times import where_the_time_went
from engine.reports.training import stop_words
from engine.reports.verdict import TITLE, answer_of

if TYPE_CHECKING:
    from engine.runs import RunRecord

Tone = Literal["good", "bad", "open"]

CHANGED, TIME, ADAPTER = "What changed since the last run?", "Which stage took the time?", "Where is the adapter?"
_RESULTS = ("harmful requests refused", "normal requests refused", "held-out pairs put right")
_RULES = 2  # that were not met whose words are told; the others are named
_log = logging.getLogger("dpo")
_ENDED = {"failed": "No, the run failed", "crashed": "No, the run crashed", "cancelled": "No, the run was cancelled"}


def brief(record: "RunRecord", other: "RunRecord | None" = None) -> list[tuple[str, str]]:
    """(question, answer in markdown): did it work, what changed, which stage took the time, where is the adapter.

    Args:
        other: the run that this one is held against; the last one before it that can be where None is given.
    """
    changed = CHANGED if other is None else f"What changed since run {other.id}?"
    return [
        (TITLE, _answered(lambda: _worked(record))),
        (changed, _answered(lambda: _changed(record, other))),
        (TIME, _answered(lambda: where_the_time_went(record))),
        (ADAPTER, _answered(lambda: _adapter(record))),
    ]


def _answered(tell: Callable[[], str]) -> str:
    """An answer; one that a broken artifact or record keeps from being told says so, and the others are told."""
    try:
        return tell()
    except Exception as trouble:
        _log.warning("a question about the run could not be answered: %s: %s", type(trouble).__name__, trouble)
        return f"This could not be told: {escape(trouble, 300)}"


def badge(record: "RunRecord") -> tuple[str, Tone]:
    """The verdict in a word or two, and what that means."""
    if record.state == "running":
        return "running", "open"
    if record.state != "completed":
        return record.state, "bad"
    passed = passed_gate(record)
    if passed is None:
        return "completed", "open"
    return ("passed the gate", "good") if passed else ("did not pass the gate", "bad")


def passed_gate(record: "RunRecord") -> bool | None:
    """Whether the run's model passed the gate; None where that is not known."""
    promoted = record.artifact("promote")
    try:
        verdict = promoted.metrics.get("verdict") if promoted else None
    except StoreError:
        return None
    return None if verdict is None else verdict == "promote"


def _worked(record: "RunRecord") -> str:
    if record.state in _ENDED:
        problem = record.error.strip().partition("\n")[0]
        done = record.decisions[-1].stage if record.decisions else ""
        words = f"**{_ENDED[record.state]}**{f': {escape(problem, 300)}' if problem else '.'}"
        return f"{words}\n\nThe last stage it finished is {escape(done)}." if done else words
    if record.state == "running":
        return "It is still running, or was killed before it could say how it ended."
    return "\n\n".join([_verdict(record), *_stopped(record), *_results(record)])


def _stopped(record: "RunRecord") -> list[str]:
    """That the monitor stopped its training, which is not what anybody asked for, and what is left of it."""
    trained = record.artifact("train")
    words = stop_words(trained) if trained else ""
    return [f"**{escape(words)}**"] if words else []


def _verdict(record: "RunRecord") -> str:
    promoted, passed = record.artifact("promote"), passed_gate(record)
    if promoted is None or passed is None:
        return "**It completed**, and the gate was not asked."
    try:
        said, *rules = gate_words(promoted)[:-1]
    except StoreError:
        return f"**{'Yes' if passed else 'No'}**, said the gate; its rules cannot be read any more."
    told = escape(said.rpartition(". ")[2].rstrip(":."))
    named = ", ".join(code(rule.removeprefix("- ").partition(" (")[0]) for rule in rules)
    if passed:
        return f"**Yes**, the gate let it pass: {told[:1].lower()}{told[1:]}."
    why = "; it ".join(escape(rule.partition("): ")[2]) for rule in rules[:_RULES])
    return f"**No**, the gate did not let it pass: {told}{f' ({named}). It {why}' if named else ''}."


def _results(record: "RunRecord") -> Iterator[str]:
    """Its few most telling numbers, from before to after."""
    told = []
    for label, _, before, after, *_ in answer_of(record.artifact).rows:
        if label in _RESULTS:
            then, now = (value.partition(" (")[0] for value in (before, after))
            moved = now if then == "–" else f"{then} → {now}" if then != now else f"{now} as before"
            told.append(f"{label} **{escape(moved)}**")
    if told:
        words = "; ".join(told)
        yield f"{words[0].upper()}{words[1:]}."


def _changed(record: "RunRecord", other: "RunRecord | None") -> str:
    from engine.reports.against import since_words  # it reads records, which import the reports

    return "\n\n".join(escape(words) for words in since_words(record, other))


def _adapter(record: "RunRecord") -> str:
    for stage in ("promote", "train"):
        artifact = record.artifact(stage)
        folder = artifact.path / "adapter" if artifact else None
        if artifact and folder and folder.is_dir():
            told = " ".join([f"In {code(folder.resolve())}.", *_stopped(record), _service(artifact)]).strip()
            base, revision = _base(record)
            return f"{told}\n\n{block(_loading(base, revision, str(folder.resolve())))}" if base else told
    if any(each.stage == "train" and each.path for each in record.decisions):
        return "It was removed since; a run under the same configuration makes it again."
    return "There is none: the training was not finished."


def _service(artifact: Artifact) -> str:
    if artifact.stage != "promote":
        return "This run did not ask the gate."
    try:
        now = datetime.now().astimezone().strftime("%F %H:%M %z")
        return f"{escape(gate_words(artifact)[-1])} (That is of {now}; {code('dpo promoted')} tells it at any time.)"
    except StoreError:
        return ""


def _base(record: "RunRecord") -> tuple[str, str]:
    """What the adapter belongs onto, and its revision where it is one of the Hub; nothing where that is gone."""
    model = record.config.get("model")
    if isinstance(model, Mapping) and model.get("policy"):
        name, revision = str(model["policy"]), str(model.get("policy_revision") or "")
        return (str(Path(name).resolve()), "") if Path(name).is_dir() else (name, revision)
    made = record.artifact("sft")
    policy = made.path / "policy" if made else None
    return (str(policy.resolve()), "") if policy and policy.is_dir() else ("", "")


def _loading(base: str, revision: str, adapter: str) -> str:
    """Python that loads it."""
    base, adapter = (json.dumps(each, ensure_ascii=False) for each in (base, adapter))
    pinned = f", revision={json.dumps(revision)}" if revision and revision != "main" else ""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({base}{pinned})\n"
        f"model = PeftModel.from_pretrained(base, {adapter})"
    )
