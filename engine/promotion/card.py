"""The model card: the README.md of the adapter that was judged, made with huggingface_hub's ModelCard.

Whatever comes from the data, a name or an answer, shows as text. There is no time in it, no path of a machine and no
secret: the same model judged by the same rules has the same card.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.promotion.card_data import is_on_the_hub, metadata
from engine.promotion.card_facts import Facts, Sample, told_of
from engine.promotion.limits import limits
from engine.promotion.method import method_of
from engine.reports import losses
from engine.reports.markdown import block, code, escape, is_number, number, table
from engine.reports.measures import ANSWERS, PAIRS, is_of_a_policy, kind_in_words, kind_of, shown

_SHOWN_CHARACTERS = 400
_SHOWN_SOURCES = 12


def model_card(facts: Facts) -> str:
    """The whole file: metadata in YAML, then markdown.

    A part that cannot be told of these facts is left out, and the log says so: the gate does not depend on it.
    """
    from huggingface_hub import ModelCard

    body = "\n\n".join(_parts(facts))
    return str(ModelCard(f"---\n{metadata(facts)}\n---\n\n{body}\n"))


def _parts(facts: Facts) -> Iterator[str]:
    method = method_of(facts.trained)
    yield f"# LoRA adapter trained with {method.name}, {facts.candidate}"
    yield (
        "An adapter that makes a language model prefer the answers that people chose over those that they rejected, "
        f"trained by [{method.words}]({method.paper})."
    )
    if short := told_of(facts, "the verdict", _verdict_in_short):
        yield f"**{short}**"
    for heading, part in _PARTS.items():
        if told := told_of(facts, f'"{heading}"', part):
            yield f"## {heading}\n\n{told}"


def _verdict_in_short(facts: Facts) -> str:
    if facts.verdict["verdict"] == "promote":
        return "The gate let it pass: it may serve."
    failed = sum(rule["outcome"] not in ("passed", "not applied") for rule in facts.verdict["rules"])
    return f"The gate refused it: {failed} of its rules {'is' if failed == 1 else 'are'} not met."


def _loading(facts: Facts) -> str:
    name = facts.policy if facts.made or is_on_the_hub(facts.policy) else Path(facts.policy).name
    revision = f", revision={json.dumps(facts.commit)}" if facts.commit else ""
    dtype = json.dumps(str(facts.how.get("dtype", "auto")))
    lines = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"policy = {json.dumps(name, ensure_ascii=False)}",
        f"model = AutoModelForCausalLM.from_pretrained(policy{revision}, dtype={dtype})",
        'model = PeftModel.from_pretrained(model, "this folder")',
        f"tokenizer = AutoTokenizer.from_pretrained(policy{revision})",
    )
    shown_code = block("\n".join(lines)).replace("\n", "python\n", 1)
    return f"{_belongs_on(facts, name)}\n\n{shown_code}"


def _belongs_on(facts: Facts, name: str) -> str:
    template = f" Prompts are written with the template {code(facts.template)}." if facts.template else ""
    if not facts.made:
        words = f"It belongs on {code(name)}, the policy that was given, and on nothing else: " + (
            "if that is an adapter itself, merge it into its base first."
            if facts.model.name
            else "on another model its changes mean nothing."
        )
        return words + template
    made_of = f"fine-tuned from {code(_shown_name(facts.model.name))}" if facts.model.name else "trained from scratch"
    return (
        f"It belongs on the model that the pipeline's `sft` stage made, {code(name)}, {made_of}, and on nothing else: "
        f"its `policy/` is needed along with this folder.{template}"
    )


def _shown_name(name: str) -> str:
    """A folder by its own name alone: where it lay is nobody's business."""
    return name if is_on_the_hub(name) else Path(name).name


def _data(facts: Facts) -> str:
    found = list(facts.sources.items())
    rows = [[escape(name, 200), number(train), number(held)] for name, (train, held) in found[:_SHOWN_SOURCES]]
    if len(found) > _SHOWN_SOURCES:
        rest = [counts for _, counts in found[_SHOWN_SOURCES:]]
        rows.append([f"{len(rest)} more", *(number(sum(column)) for column in zip(*rest, strict=True))])
    return table(["source", "pairs trained on", "pairs held out"], rows) or "What it was trained on cannot be told."


def _training(facts: Facts) -> str:
    lora, went = facts.lora, facts.trained.get("went", {})
    targets = lora.get("target_modules")
    rows = {
        "β": number(facts.trained["beta"]),
        "loss": ", ".join([losses.terms(facts.trained), *losses.shared(facts.trained)]),
        "LoRA rank": number(lora.get("r", "–")),
        "LoRA α": number(lora.get("lora_alpha", "–")),
        "LoRA dropout": number(lora.get("lora_dropout", "–")),
        "adapted layers": escape(", ".join(map(str, targets)) if isinstance(targets, list) else targets or "–"),
        "optimizer steps": number(went.get("steps", "–")),
        "passes over the pairs": number(went.get("epochs", "–")),
        "highest learning rate": number(went.get("highest_learning_rate", "–")),
        "precision": escape(", ".join(f"{name} {value}" for name, value in facts.how.items())),
    }
    told = table(["setting", "value"], [[name, value] for name, value in rows.items() if value != "–"])
    return f"{told}\n\n{_watched(facts.trained.get('monitor', {}))}"


def _watched(monitor: Mapping[str, Any]) -> str:
    seen = [
        f"- At step {number(each.get('step', '–'))}: {escape(each.get('words') or each.get('sign', '–'))}"
        for each in monitor.get("findings", ())
    ]
    told = "\n".join(["While it was trained the monitor saw:", "", *seen]) if seen else "The monitor saw no trouble."
    if is_number(monitor.get("stopped_at")):
        told += f"\n\nIt stopped the training at step {number(monitor['stopped_at'])}"
        told += f", and kept the adapter as it was after step {number(monitor.get('kept_step') or 0)}."
    return told


def _measured(facts: Facts) -> str:
    metrics, sets = facts.measured, ", ".join(map(code, facts.prompt_sets))
    pairs = [[label, escape(shown(metrics, name))] for name, (label, _) in PAIRS.items() if name in metrics]
    parts = (
        "In parentheses: 95 % intervals, over prompts.",
        table(["on held-out pairs", "number"], pairs),
        table([f"requests of {sets}" if sets else "requests", "before the training", "after it"], _answers(metrics)),
    )
    return "\n\n".join(part for part in parts if part)


def _answers(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row for each kind of request and measure that either model has a number for."""
    rows = []
    for kind in dict.fromkeys(kind_of(name) for name in metrics if is_of_a_policy(name)):
        for what, (label, _) in ANSWERS.items():
            names = [f"{policy}/{kind}/{what}" for policy in ("start", "dpo")]
            if any(metrics.get(name) is not None for name in names):
                rows.append([f"{escape(kind_in_words(kind))}: {label}", *(escape(shown(metrics, n)) for n in names)])
    return rows


def _gate(facts: Facts) -> str:
    against = facts.verdict.get("in_service")
    compared = (
        f"It was held against the model in service, version {code(against)}."
        if against
        else ("No model was in service to hold it against.")
    )
    rules = [
        f"- {_outcome(rule['outcome'])} · {code(rule['name'])}: {escape(rule['words'])}"
        for rule in facts.verdict["rules"]
        if rule["outcome"] != "not applied"
    ]
    return "\n".join([compared, "", *rules])


def _limits(facts: Facts) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in limits(facts))


def _outcome(outcome: str) -> str:
    return escape(outcome) if outcome == "passed" else f"**{escape(outcome)}**"


def _samples(facts: Facts) -> str:
    return "\n\n".join(map(_sample, facts.samples))


def _sample(sample: Sample) -> str:
    return (
        f"**{escape(kind_in_words(sample.kind))} request:** {_said(sample.prompt)}\n\n"
        f"- before: {_said(sample.before)}\n- after: {_said(sample.after)}"
    )


def _said(text: str | None) -> str:
    return "–" if text is None else escape(text, _SHOWN_CHARACTERS) or "*(nothing)*"


_PARTS = {
    "How to load it": _loading,
    "Data": _data,
    "Training": _training,
    "Measured": _measured,
    "The gate": _gate,
    "Limits": _limits,
    "Samples": _samples,
}
