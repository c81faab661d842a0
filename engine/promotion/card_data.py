"""What a model card says for machines: its metadata, as the Hub reads it."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.promotion.card_facts import Facts, told_of
from engine.promotion.method import method_of
from engine.reports.markdown import is_number, plain
from engine.secrets import redact

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HEADLINES = {  # what stands in the metadata, too
    "eval_rewards/accuracies": ("accuracy", "held-out pairs put right"),
    "dpo/adversarial/refused": ("refusal_rate", "harmful requests refused"),
    "dpo/normal/refused": ("refusal_rate", "normal requests refused"),
    "dpo/normal/right": ("accuracy", "normal requests answered right"),
}


def metadata(facts: Facts) -> str:
    """As YAML, without the lines around it; what cannot be told is left out, see `told_of`."""
    from huggingface_hub import ModelCardData

    method = method_of(facts.trained).name.lower()
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[method, "lora", "preference-optimization", "text-generation"],
        base_model=told_of(facts, "the base model", _base),
        datasets=told_of(facts, "the data sets", _hub_sources),
        model_name=f"{method}-lora-{facts.candidate}",
        eval_results=told_of(facts, "the results", _results),
    )
    return str(data.to_yaml())


def is_on_the_hub(name: str) -> bool:
    """Whether a model of this name is one of the Hub: it looks like one, and there is no such folder."""
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).is_dir()


def _base(facts: Facts) -> str:
    """The Hub's name of the model that it belongs on, or that this was made of; nothing for a folder."""
    name = facts.model.policy or facts.model.name
    return redact(name) if is_on_the_hub(name) else ""


def _hub_sources(facts: Facts) -> list[str]:
    """Files are known by their bare names, so what has an owner in front is a data set of the Hub."""
    return [redact(name) for name in facts.sources if _REPOSITORY.fullmatch(name)]


def _results(facts: Facts) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    pairs, prompts = ", ".join(facts.sources), ", ".join(facts.prompt_sets)
    results = []
    for metric, (kind, name) in _HEADLINES.items():
        value, bounds = facts.rate(metric), _bounds(facts.evaluated["intervals"].get(metric))
        if value is None or not math.isfinite(value):
            continue
        of_pairs = metric.startswith("eval_")
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="held-out-pairs" if of_pairs else "prompts",
                dataset_name=plain(f"held-out pairs of {pairs}" if of_pairs else f"prompts: {prompts}", 120),
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 6),
                metric_args={"interval_95": bounds} if bounds else None,
            )
        )
    return results


def _bounds(found: object) -> list[float]:
    """Of an interval; none where it has none, or no numbers for them."""
    bounds = found if isinstance(found, list) else []
    return [round(bound, 6) for bound in bounds] if all(map(_is_finite, bounds)) else []


def _is_finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)
