"""A first profile for somebody's model and data: every number with the reason why it is what it is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.reports.markdown import plain
from engine.toml_text import assignment

_GIB = 2**30
_ENOUGH_PAIRS = 25_000
_ENOUGH_HELD_OUT = 200
_FEW_STEPS = 100  # below so many, a schedule with warm-up is mostly warm-up
_SMALL, _TINY = 0.2, 0.02  # billions of parameters
_ROOM_FOR_WEIGHTS = 0.45  # of a GPU's memory; activations, the head's chunk and the adapter's state need the rest
_FOUR_BITS = 0.62  # bytes a parameter with nf4's constants, and embeddings and head in half precision
_LENGTHS = (256, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True)
class Known:
    """What is known of the model, the data and the machine.

    Attributes:
        policy: the instruction-tuned or SFT model to start from; empty: the stage sft makes one of the base.
        chat: whether the tokenizer has a chat template; None where nobody could look.
        parameters: billions; None where nobody could look.
        gpu_gib: memory of the GPU; 0 for none.
        download: keys of the table `[download]`.
        data: the format and size of the data in words; empty where nobody could look.
        pairs: how many pairs there are; None where that is not known.
        tokens: tokens of prompt and longer answer that nine in ten pairs keep within; None where that is not known.
        more: further keys that were asked for, as tables.
        by_name: whether it is the model's name alone that says it is tuned already.
    """

    model: str
    policy: str
    chat: bool | None
    parameters: float | None
    gpu_gib: float
    download: dict[str, Any]
    data: str = ""
    pairs: int | None = None
    tokens: int | None = None
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_name: bool = False

    @property
    def quantized(self) -> bool:
        """Whether half-precision weights would leave too little room on the GPU."""
        return bool(self.gpu_gib and self.parameters) and self._weights(2.0) > _ROOM_FOR_WEIGHTS * self.gpu_gib

    @property
    def fits(self) -> bool:
        """Whether even the weights in 4 bits leave room."""
        return not self.quantized or self._weights(_FOUR_BITS) < _ROOM_FOR_WEIGHTS * self.gpu_gib

    def _weights(self, bytes_each: float) -> float:
        return (self.parameters or 0.0) * 1e9 * bytes_each / _GIB

    def weights_gib(self, quantized: bool) -> float:
        """GiB of the frozen weights, in 4 bits or in the dtype that the profile takes."""
        return self._weights(_FOUR_BITS if quantized else 2.0 if self.gpu_gib else 4.0)


Line = tuple[str, Any, str]  # key, value, reason


def profile_text(known: Known) -> str:
    """The profile as TOML, with a reason behind each line."""
    size = f"{known.parameters:.2g}B parameters" if known.parameters else "its size could not be seen from here"
    where = f"one GPU of {known.gpu_gib:.3g} GiB" if known.gpu_gib else "the CPU"
    parts = [f"# {plain(known.model)} ({size}) on {where}, made by `dpo init`. Change what you know better.\n"]
    if known.data:
        parts.append(f"# The data: {plain(known.data)}.\n")
    if not known.fits:
        parts.append("# Even in 4 bits the weights leave too little room on this GPU: take a smaller model.\n")
    tables = {name: list(lines) for name, lines in _tables(known)}
    for name, more in known.more.items():
        own = tables.setdefault(name, [])
        own[:] = [line for line in own if line[0] not in more] + [
            (key, value, "asked for") for key, value in more.items()
        ]
    parts += [_table(name, lines) for name, lines in tables.items() if lines]
    return "\n".join(parts)


def _table(name: str, lines: list[Line]) -> str:
    shown = (f"{assignment(key, value)}{f'  # {why}' if why else ''}" for key, value, why in lines)
    return "\n".join([f"[{name}]", *shown, ""])


def _tables(known: Known) -> Iterator[tuple[str, Iterator[Line]]]:
    yield "model", _model(known)
    yield "download", ((key, value, "") for key, value in known.download.items())
    yield "tokenize", _tokenize(known)
    yield "subsample", _subsample(known)
    if not known.policy:
        yield "sft", _sft(known)
    yield "reference", _reference(known)
    yield "train", _train(known)
    yield "evaluate", iter([("max_new_tokens", 256, "an answer that is cut counts as not brought to its end")])
    yield "runtime", _runtime(known)


def _model(known: Known) -> Iterator[Line]:
    yield "name", known.model, "base and tokenizer"
    if known.policy:
        yield "policy", known.policy, _why_policy(known)


def _why_policy(known: Known) -> str:
    if known.by_name:
        return "tuned to answer, by its name: DPO starts from it, sft is skipped; if it is not, `dpo init --policy ''`"
    if known.policy == known.model:
        return "tuned to answer already: DPO starts from it, and the stage sft is skipped"
    return "what DPO starts from"


def _tokenize(known: Known) -> Iterator[Line]:
    if known.chat is False:
        yield (
            "template",
            "plain",
            "the tokenizer has no chat template; chatml or a .jinja file of yours may do as well",
        )
    else:
        seen = "" if known.chat else ", if it has one"
        yield "template", "chat", f"the tokenizer's own{seen}: what it was tuned with, and will be served with"
    if known.tokens:
        length = next((each for each in _LENGTHS if each >= known.tokens), _LENGTHS[-1])
        yield "max_length", length, f"nine in ten pairs keep within about {known.tokens} tokens, judged by characters"
    else:
        yield "max_length", 1024, "nobody has looked at your lengths yet: `dpo data inspect` tells them"
    yield "max_prompt_length", 0, "0: half of max_length, so that a long question does not push its answer out"


def _subsample(known: Known) -> Iterator[Line]:
    if known.pairs is not None and known.pairs < _ENOUGH_PAIRS:
        yield "pairs", "all", f"there are {known.pairs:,}; what is held out is taken off first"
        share = round(min(0.3, max(0.1, _ENOUGH_HELD_OUT / max(known.pairs, 1))), 2)
        yield "eval_share", share, "200 held-out prompts make an accuracy's interval narrow enough to decide by"
    else:
        yield (
            "pairs",
            _ENOUGH_PAIRS,
            "as many did what was wanted where 100,000 made a model refuse everything",
        )


def _sft(known: Known) -> Iterator[Line]:
    yield (
        "data",
        "chosen",
        "the preferred answers; instructions of your own (a file, owner/name) are better",
    )
    yield "method", "lora", "an adapter on all linear layers, merged afterwards; all weights need float32 and its room"
    yield "dtype", "bfloat16" if known.gpu_gib else "float32", "of the frozen weights"
    yield "learning_rate", 1e-4, "usual for an SFT adapter"


def _reference(known: Known) -> Iterator[Line]:
    gib = f"about {known.weights_gib(known.quantized):.2g} GiB of weights" if known.parameters else "of the weights"
    if known.quantized:
        yield "quantization", "4bit", f"{gib}; in bfloat16 they would take {known.weights_gib(False):.2g}"
    yield "dtype", "bfloat16" if known.gpu_gib else "float32", "of what is computed" if known.quantized else gib


def _train(known: Known) -> Iterator[Line]:
    small = known.parameters is not None and known.parameters < _SMALL
    rate = (1e-4 if (known.parameters or 0) < _TINY else 2e-5) if small else 5e-6
    yield "beta", 0.1, "the usual one; raise it where the report shows a KL you do not like"
    yield (
        "learning_rate",
        rate,
        ("a small model needs larger steps" if small else "careful for an adapter; 5e-5 has silenced models"),
    )
    batch = _batch(known.pairs)
    yield (
        "batch_size",
        batch,
        "pairs an optimizer step" if batch == 32 else "smaller than 32, so that few pairs make enough steps",
    )
    yield "epochs", 1, "a second one mostly raises margins on pairs that are already right"
    yield "lora", {"rank": 16, "alpha": 32}, "on all linear layers"


def _batch(pairs: int | None) -> int:
    """The largest of 32, 16 and 8 that makes enough steps of so many pairs."""
    if pairs is None:
        return 32
    return next((size for size in (32, 16) if pairs / size >= _FEW_STEPS), 8)


def _runtime(known: Known) -> Iterator[Line]:
    if known.quantized:
        yield "gradient_checkpointing", True, "half as much time again, for room that 4 bits alone do not make"
    if known.gpu_gib:
        tokens = 4096 * max(1, min(4, round(math.log2(max(known.gpu_gib, 24) / 12)))) if not known.quantized else 4096
        yield "micro_batch_tokens", tokens, "trained on at once; what does not fit is lowered before the first step"
