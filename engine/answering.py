"""A policy answers prompts as text: rendered, cut and generated exactly as its training pairs were tokenized."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import DataError
from engine.models.generation import GenerationSettings, generate
from engine.preferences.templates import Template

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("dpo")
_NAMED = 3  # of the prompts that cannot be asked


@dataclass(frozen=True)
class Answer:
    """What a policy said.

    Attributes:
        tokens: how many it took.
        ended: False when it was cut off before it chose to stop.
        ids: the new token ids, without the one that ended it; `tokens` of them.
        prompt_ids: what it was asked as: the prompt rendered and cut; empty where the template cannot write it.
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

    A question that the template cannot write, as one that spells the end of a turn, stays without an answer; the log
    says which.

    Args:
        progress: told after each batch how many questions are answered, of those that can be asked, and how many tokens
            its answers have.

    Raises:
        ModelError: the model's context has no room for an answer.
    """
    asked = _asked(template, questions)
    prompts = [template.cut_prompt(ids, max_prompt_length) for ids in asked.values()]
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
    answers = {
        place: Answer(template.answer_text(said.ids), len(said.ids), said.ended, tuple(said.ids), tuple(ids))
        for place, said, ids in zip(asked, generations, prompts, strict=True)
    }
    return [answers.get(place, Answer("", 0, False)) for place in range(len(questions))]


def _asked(template: Template, questions: Sequence[str]) -> dict[int, list[int]]:
    """The ids of each prompt by its place in the list, without those that the template cannot write."""
    asked: dict[int, list[int]] = {}
    trouble: list[str] = []
    for place, question in enumerate(questions):
        try:
            [asked[place]] = template.prompt_ids([[{"role": "user", "content": question}]])
        except DataError as error:
            trouble.append(f"{question!r} ({' '.join(filter(None, (error.problem, error.found)))})")
    if trouble:
        named = ", ".join(trouble[:_NAMED]) + (", …" if len(trouble) > _NAMED else "")
        _log.warning("%d prompts cannot be asked and count as empty answers: %s", len(trouble), named)
    return asked
