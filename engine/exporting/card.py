"""The README.md of an export: the card that was sealed with the verdict, told how to load what lies beside it."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from engine.exporting.adapter import POLICY, Belonging
from engine.promotion.card_data import is_on_the_hub
from engine.reports.markdown import block, code, escape

CARD = "README.md"
_LOADING = "How to load it"
_VERDICTS = {
    "promote": "The gate of its pipeline let it pass.",
    "keep": "The gate of its pipeline kept it back; what stood in its way is told below.",
    "": "No gate has judged it.",
}


@dataclass(frozen=True)
class Told:
    """What the card has to say of an export.

    Attributes:
        base: what the adapter belongs on; None for a merged model.
        starts_from: the Hub's name of the model behind it all, else empty.
        template: of its prompts, by name; `as_chat` says whether the tokenizer writes it.
        repository: where it is pushed to, else empty.
        notes: sentences that whoever loads it should know.
    """

    candidate: str
    dtype: str
    verdict: str
    base: Belonging | None
    starts_from: str = ""
    template: str = ""
    as_chat: bool = True
    repository: str = ""
    notes: tuple[str, ...] = field(default=())


def write_card(folder: Path, sealed: Path, told: Told) -> None:
    """Writes `README.md`.

    Args:
        sealed: the card that was sealed with the adapter; where it is none, this one has no more than how to load it.
    """
    from huggingface_hub import ModelCard

    text = sealed.read_text("utf-8") if sealed.is_file() else "---\nlibrary_name: peft\n---\n"
    card = ModelCard(text)
    _adjust(card.data, told)
    kept = [section for section in re.split(r"\n(?=## )", card.text) if section.startswith("## ")]
    kept = [section.strip() for section in kept if section.partition("\n")[0] != f"## {_LOADING}"]
    card.text = "\n\n".join([*_opening(told), *kept]) + "\n"
    (folder / CARD).write_text(str(card), "utf-8")


def _adjust(data: object, told: Told) -> None:
    """Its metadata: for whom the files are, and what they came from, as the Hub reads it."""
    tags = [str(tag) for tag in getattr(data, "tags", None) or ["dpo", "lora"]]
    merged = told.base is None
    found = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": [tag for tag in tags if tag != "lora"] if merged else tags,
    }
    if told.starts_from and is_on_the_hub(told.starts_from):
        found |= {"base_model": told.starts_from, "base_model_relation": "finetune" if merged else "adapter"}
    for name, value in found.items():
        setattr(data, name, value)


def _opening(told: Told) -> list[str]:
    what = "Model" if told.base is None else "LoRA adapter"
    trained = "trained by [direct preference optimization](https://arxiv.org/abs/2305.18290)"
    parts = [
        f"# {what} trained with DPO, {escape(told.candidate)}",
        f"It prefers the answers that people chose over those that they rejected, {trained}.",
        f"**{_VERDICTS.get(told.verdict, _VERDICTS[''])}**",
        f"## {_LOADING}",
        *_before_loading(told),
        block("\n".join(_lines(told))).replace("\n", "python\n", 1),
    ]
    return [*parts, *(["\n".join(f"- {escape(each)}" for each in told.notes)] if told.notes else [])]


def _before_loading(told: Told) -> list[str]:
    parts = [] if told.base is None else [f"It belongs on {escape(told.base.words)}, and on nothing else."]
    if told.repository and told.base is not None and told.base.beside:
        parts.append(f"Fetch the whole first: {code(f'hf download {told.repository} --local-dir .')}")
    if told.template and not told.as_chat:
        parts.append(f"Its prompts are written with the template {code(told.template)}, which the tokenizer cannot.")
    return parts


def _lines(told: Told) -> list[str]:
    here = json.dumps(told.repository or ".", ensure_ascii=False)
    dtype = json.dumps(told.dtype)
    base = told.base
    if base is None:
        model = [f"model = AutoModelForCausalLM.from_pretrained({here}, dtype={dtype})"]
    else:
        here = '"."' if base.beside else here
        revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
        name = json.dumps(POLICY if base.beside else base.name, ensure_ascii=False)
        model = [
            f"base = AutoModelForCausalLM.from_pretrained({name}{revision}, dtype={dtype})",
            f"model = PeftModel.from_pretrained(base, {here})",
        ]
    asking = [
        'messages = [{"role": "user", "content": "Hello!"}]',
        "asked = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "said = model.generate(**asked, max_new_tokens=64)",
        'print(tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return [
        *(["from peft import PeftModel"] if base is not None else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *model,
        f"tokenizer = AutoTokenizer.from_pretrained({here})",
        *(asking if told.as_chat else []),
    ]
