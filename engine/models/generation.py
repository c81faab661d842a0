"""Text from a model: batches of prompts continued, with nothing left behind in the model or in torch's RNG."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from engine.errors import ModelError


@dataclass(frozen=True)
class GenerationSettings:
    """How to continue a prompt. Temperature and top-p count only when `do_sample`; the penalty always does.

    Attributes:
        max_new_tokens: fewer when the prompt leaves less room in the model's context.
        repetition_penalty: 1 is none; it weighs the ids of the prompt too (Keskar et al. 2019, section 4.1).
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ValueError(f"impossible generation settings: {self}")


GREEDY = GenerationSettings()
SEED = GenerationSettings(do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.5)
PRESETS = {"greedy": GREEDY, "seed": SEED}


@dataclass(frozen=True)
class Generation:
    """What a model said.

    Attributes:
        ids: the new token ids, without the prompt, the EOS that ended them, or padding.
        ended: False when the model was cut off before it chose to stop.
    """

    ids: list[int]
    ended: bool


def generate(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    settings: GenerationSettings,
    seed: int,
    batch_size: int,
    pad_id: int | None,
    eos_ids: int | Sequence[int],
    device: torch.device | str,
    progress: Callable[[int, int], None] = lambda done, tokens: None,
) -> list[Generation]:
    """Continues every prompt, in the order given.

    Neither the batch size nor the order changes what a prompt is answered, beyond float rounding; sampling depends on
    `seed` and the prompt's place in the list. The model's own generation defaults are not used. Its mode (training or
    eval, module by module) and torch's RNG states are afterwards what they were.

    Args:
        model: a causal language model of transformers, or a PeftModel around one, on `device`.
        prompt_ids: one list of token ids a prompt.
        pad_id: may equal an EOS or unknown id, or be None; no id is ever taken for padding because of its value.
        eos_ids: the id or ids of which the first after the prompt ends a generation; may be empty.
        progress: told at the start and after each batch how many prompts are done, and the new tokens of its answers.

    Raises:
        ModelError: a prompt is empty, or fills the model's context and leaves no room for an answer.
    """
    ends = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    room = [_room(place, len(ids), model, settings.max_new_tokens) for place, ids in enumerate(prompt_ids)]
    answers: dict[int, Generation] = {}
    progress(0, 0)
    with torch.no_grad(), evaluating(model), _without_defaults(model):
        for places in _batches(prompt_ids, room, batch_size):
            config = _config(settings, room[places[0]], pad_id, ends)
            drawing = _drawing(settings, seed, places, device)
            batch = _left_padded([prompt_ids[place] for place in places], device)
            output = model.generate(**batch, generation_config=config, logits_processor=drawing)
            new = output[:, batch["input_ids"].shape[1] :].tolist()
            said = [_until_end(ids, ends) for ids in new]
            answers.update(zip(places, said, strict=True))
            progress(len(answers), sum(len(each.ids) for each in said))
    return [answers[place] for place in range(len(prompt_ids))]


def _room(place: int, length: int, model: Any, wanted: int) -> int:
    if not length:
        raise ModelError("an empty prompt cannot be continued", expected="a token id or more", where=f"prompt {place}")
    context = getattr(model.config, "max_position_embeddings", None)
    room = min(wanted, context - length) if context else wanted
    if room < 1:
        raise ModelError(
            "a prompt leaves the model no room for an answer",
            expected=f"fewer than {context} tokens, the model's context",
            found=f"{length} tokens",
            where=f"prompt {place}",
            fix="shorten the prompt, or take a model with a longer context",
        )
    return room


def _batches(prompt_ids: Sequence[Sequence[int]], room: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of the prompts, those of like length together. A batch has one room, so no neighbour cuts an answer."""
    by_length = sorted(range(len(prompt_ids)), key=lambda place: len(prompt_ids[place]))
    for _, alike in groupby(by_length, key=lambda place: room[place]):
        places = list(alike)
        yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device | str) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both (B, longest prompt); positions follow from the mask.

    A row is filled up with its own first id: the repetition penalty looks at ids without the mask, and would otherwise
    weigh down the padding id, which is often EOS, in the short rows only.
    """
    width = max(map(len, prompts))
    ids = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _config(settings: GenerationSettings, room: int, pad_id: int | None, ends: list[int]) -> Any:
    # Never `do_sample`: `_Draw` has the choice, and its one finite score is what the greedy search then takes.
    filler = pad_id if pad_id is not None else (ends or [0])[0]
    return GenerationConfig(
        max_new_tokens=room,
        do_sample=False,
        repetition_penalty=settings.repetition_penalty,
        pad_token_id=filler,
        eos_token_id=ends or None,
        use_cache=True,
    )


def _until_end(ids: list[int], ends: Sequence[int]) -> Generation:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    return Generation(ids[:end], ended=end is not None)


def _drawing(
    settings: GenerationSettings, seed: int, places: Sequence[int], device: torch.device | str
) -> LogitsProcessorList:
    if not settings.do_sample:
        return LogitsProcessorList()
    numbers = torch.stack([_numbers(seed, place, settings.max_new_tokens) for place in places])
    warpers = [TemperatureLogitsWarper(settings.temperature), TopPLogitsWarper(settings.top_p)]
    return LogitsProcessorList([*warpers, _Draw(numbers.to(device))])


def _numbers(seed: int, place: int, count: int) -> Tensor:
    """The uniform numbers, (count,) float64, that one prompt's tokens are drawn with."""
    entropy = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    own = torch.Generator().manual_seed(int.from_bytes(entropy[:7]))
    return torch.rand(count, generator=own, dtype=torch.float64)


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one id a row, drawn by inverting the distribution function at a number the row brought along.

    So a row's draws are its own: they do not depend on who is in the batch, on the device, or on a global RNG.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers  # (B, longest answer)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        reached = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        total = reached[:, -1:]
        number = self._numbers[:, self._step, None] * total
        # Rounding must not lift it to the total: no id lies above that.
        chosen = torch.searchsorted(reached, torch.minimum(number, torch.nextafter(total, -total)), right=True)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _without_defaults(model: nn.Module) -> Iterator[None]:
    """Takes the model's own generation config away: transformers would fill every field left at None from it."""
    own = [module for module in model.modules() if "generation_config" in vars(module)]
    saved = [module.generation_config for module in own]
    for module in own:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in zip(own, saved, strict=True):
            module.generation_config = config
