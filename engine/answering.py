"""A policy answers prompts as text: rendered, cut and generated exactly as its training pairs were tokenized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.models.generation import GenerationSettings, generate
from engine.preferences.templates import Template

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answer:
    """What a policy said.

    Attributes:
        tokens: how many it took.
        ended: False when it was cut off before it chose to stop.
        ids: the new token ids, without the one that ended it; `tokens` of them.
        prompt_ids: what it was asked as: the prompt rendered and cut.
    """

    text: str
    tokens: int
    ended: bool
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()


def answer(
    model: "torch.nn.Module",
    template: Template,
    questions: Sequence[str],
    *,
    settings: GenerationSettings,
    max_prompt_length: int,
    seed: int,
    batch_size: int,
    device: "torch.device",
    progress: Callable[[int, int], None] = lambda done, tokens: None,
) -> list[Answer]:
    """One answer a question, in order; neither the model's mode nor torch's random state is changed.

    Args:
        progress: told after each batch how many questions are answered, and how many tokens its answers have.

    Raises:
        ModelError: the model's context has no room for an answer.
    """
    whole = template.prompt_ids([[{"role": "user", "content": question}] for question in questions])
    prompts = [template.cut_prompt(ids, max_prompt_length) for ids in whole]
    generations = generate(
        model,
        prompts,
        settings=settings,
        seed=seed,
        batch_size=batch_size,
        pad_id=template.tokenizer.pad_token_id,
        eos_ids=template.stop_ids,
        device=device,
        progress=progress,
    )
    decode = template.tokenizer.decode
    return [
        Answer(
            str(decode(said.ids, skip_special_tokens=True)), len(said.ids), said.ended, tuple(said.ids), tuple(asked)
        )
        for said, asked in zip(generations, prompts, strict=True)
    ]
