"""What became of a model while it was trained: its curves, its answers on the way, and what the monitor saw."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from engine.artifact import HANDED_DOWN
from engine.reports import losses
from engine.reports.drawing import MUTED
from engine.reports.evaluation import contents
from engine.reports.facts import counted, facts, named
from engine.reports.health import changes, checks_of, rates
from engine.reports.markdown import escape, is_number, number, table
from engine.reports.page import Part
from engine.reports.pictures import Mark
from engine.reports.steps import (
    ANSWERS,
    DRIFT,
    KEPT,
    LOSS,
    MACHINE,
    PREFERENCES,
    STOPPED,
    as_float,
    norm_clipped,
    pictures_of,
    steps_of,
)
from engine.store import Artifact

__all__ = ["monitor_sections", "monitor_words", "sft_parts", "steps_of", "stop_words", "train_parts"]

_NOTHING = "Nothing out of the ordinary was seen while it was trained."

_MADE_OF = "What it was made of"

_Line = Mapping[str, Any]


def sft_parts(artifact: Artifact) -> Iterator[Part]:
    """The parts of sft's page. Raises StoreError when its manifest cannot be read."""
    config, metrics = _config(artifact), artifact.metrics
    yield from pictures_of((LOSS, norm_clipped(config.get("max_grad_norm")), *MACHINE), steps_of(artifact))
    by = _adapter(config) if config.get("method") == "lora" else "all of them trained"
    made = {
        "learnt from": [_data(artifact), counted(metrics.get("examples"), "examples")],
        **_course(config, metrics, "examples"),
        "weights": [counted(metrics.get("parameters"), "in all"), by],
    }
    yield facts(_MADE_OF, made)


def train_parts(artifact: Artifact) -> Iterator[Part]:
    """The parts of train's page, the most telling first. Raises StoreError when its manifest cannot be read."""
    yield from monitor_sections(artifact)
    config, columns, checks, marks = _config(artifact), steps_of(artifact), checks_of(artifact), _marks(artifact)
    yield from pictures_of(PREFERENCES, columns, marks)
    yield from pictures_of(ANSWERS, rates(checks), marks)
    yield from pictures_of((DRIFT, norm_clipped(config.get("max_grad_norm"))), columns, marks)
    yield from pictures_of(MACHINE, columns)
    yield from changes(checks)
    yield _preferences_made_of(config, artifact.metrics)


def monitor_sections(artifact: Artifact) -> Iterator[str]:
    """What the monitor found, step by step, and whether it stopped the training; nothing where it did not watch."""
    seen = _seen(artifact)
    if seen is None:
        return
    rows = [[escape(number(each.get("step", "–"))), escape(_words(each))] for each in _findings(seen)]
    told = table(["step", "what was seen"], rows) or _NOTHING
    yield "\n\n".join(part for part in ("**While it was trained**", _stop(seen), told) if part)


def monitor_words(artifact: Artifact) -> list[str]:
    """The same as sentences of plain text; nothing where there was no trouble."""
    seen = _seen(artifact)
    if seen is None:
        return []
    told = [f"- at step {number(each.get('step', '–'))} of the training: {_words(each)}" for each in _findings(seen)]
    return [*(["Seen while it was trained:"] if told else []), *told, *filter(None, [_stop(seen)])]


def _seen(artifact: Artifact) -> _Line | None:
    seen = contents(artifact, HANDED_DOWN).get("monitor")
    return seen if isinstance(seen, Mapping) else None


def _findings(seen: _Line) -> list[_Line]:
    findings = seen.get("findings")
    return [each for each in findings if isinstance(each, Mapping)] if isinstance(findings, list) else []


def _words(finding: _Line) -> object:
    return finding.get("words") or finding.get("sign", "–")


def stop_words(artifact: Artifact) -> str:
    """That the monitor stopped the training, and which adapter was kept; nothing where it ran through."""
    return _stop(_seen(artifact) or {})


def _stop(seen: _Line) -> str:
    stopped, kept = seen.get("stopped_at"), seen.get("kept_step")
    if not is_number(stopped):
        return ""
    words = f"The training was stopped at step {number(stopped)}."
    if not is_number(kept):
        return words
    which = f"as it was after step {number(kept)}" if kept else "as it was before the first step: untrained"
    return f"{words} The adapter that was kept is the one {which}."


def _marks(artifact: Artifact) -> list[Mark]:
    """Where the training was stopped, which step was kept, and where each sign was first seen."""
    seen = _seen(artifact) or {}
    ends = [Mark(as_float(seen.get("kept_step")), KEPT, MUTED), Mark(as_float(seen.get("stopped_at")), STOPPED)]
    signs = [Mark(as_float(each.get("step")), str(each.get("sign", ""))) for each in _findings(seen)]
    return [mark for mark in (*signs, *ends) if math.isfinite(mark.x)]


def _config(artifact: Artifact) -> _Line:
    config = artifact.manifest["payload"].get("config")
    return config if isinstance(config, Mapping) else {}


def _data(artifact: Artifact) -> str:
    """What sft learnt from; nothing for files, of which an artifact only knows the content."""
    sources = artifact.manifest["payload"].get("sources")
    data = sources.get("data") if isinstance(sources, Mapping) else None
    if isinstance(data, list) and data[:1] == ["embedded"]:
        return "the embedded data"
    return "the chosen answers" if data == "chosen" else named(data)


def _preferences_made_of(config: _Line, metrics: _Line) -> str:
    beta = f"β {number(config['beta'])}" if is_number(config.get("beta")) else ""
    return facts(
        _MADE_OF,
        {
            "learnt from": [counted(metrics.get("pairs"), "pairs")],
            **_course(config, metrics, "pairs"),
            "loss": [losses.terms(config), beta, *losses.shared(config)],
            "weights": [counted(metrics.get("trainable_parameters"), "trained"), _adapter(config)],
            "before step 1": [_proof(metrics)],
        },
    )


def _course(config: _Line, metrics: _Line, rows: str) -> dict[str, list[str]]:
    return {
        "steps": [counted(metrics.get("steps")), counted(config.get("batch_size"), f"{rows} each")],
        "epochs": [counted(config.get("epochs"))],
        "learning rate": [counted(config.get("learning_rate")), named(config.get("schedule"))],
    }


def _adapter(config: _Line) -> str:
    lora = config.get("lora")
    rank = counted(lora.get("rank")) if isinstance(lora, Mapping) else ""
    return rank and f"LoRA of rank {rank}"


def _proof(metrics: _Line) -> str:
    """That the policy began as the reference, as it was measured; or why there was none."""
    if why := named(metrics.get("step0_proof")):
        return why
    margin, allowed = (counted(metrics.get(f"step0_{what}"), "nats") for what in ("max_margin", "tolerance"))
    return f"as the reference: margins up to {margin}, allowed are {allowed}" if margin and allowed else ""
