"""How far an adapter has led a policy away from its reference, at the positions of the policy's own answers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from engine.errors import NumericsError
from engine.models.forward import causal_model, head_of
from engine.models.generation import evaluating
from engine.models.memory import shortage_told

_ELEMENTS = 2**23  # of a chunk of logits: 32 MiB, and a handful of such tensors at once


@torch.no_grad()
def answer_kl(
    model: PeftModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    ended: Sequence[bool],
    *,
    batch_size: int,
    pad_id: int | None,
    device: torch.device | str,
    head: Literal["fused", "module", "model"] = "module",
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """KL(policy ‖ reference) per token of each answer, in nats, in the order given.

    It is the mean over the positions at which the answer was chosen of Σ_v p_v (log p_v − log q_v) over the whole
    vocabulary; log-softmax in float32, the mean in float64. Where the policy chose to stop is one of these positions,
    and the only one of an empty answer. The distributions are the models' own, whatever settings the answer was drawn
    under. What is in memory at once does not grow with the vocabulary, unless `head` is "model". Afterwards the modes
    of the modules, what requires a gradient, and torch's random state are what they were.

    Args:
        model: the policy, its adapter active, on `device`; the reference is the same with the adapter off.
        prompts: ids of N prompts as the policy was asked them, one or more each.
        answers: the new ids, without the one that ended an answer.
        ended: whether the policy chose to stop, and was not cut off.
        pad_id: any id; padding stands on the right and is masked.
        head: "model" where only the logits of the model itself are right, as in `Forward`.
        progress: called with (done, total) answers after each batch.

    Raises:
        MemoryShortageError: memory ran out.
        NumericsError: the KL of an answer is not finite.
    """
    asked = list(zip(prompts, answers, ended, strict=True))
    found: dict[int, float] = {}
    with _as_it_was(model):
        for places in _batches(asked, batch_size):
            rows = [_row(*asked[place]) for place in places]
            with shortage_told(f"{len(rows)} answers", "lower runtime.generation_batch"):
                found.update(zip(places, _batch_kl(model, rows, pad_id or 0, device, head), strict=True))
            _check_finite({place: found[place] for place in places})
            if progress:
                progress(len(found), len(asked))
    return [found[place] for place in range(len(asked))]


def _check_finite(found: Mapping[int, float]) -> None:
    for place, kl in found.items():
        if not math.isfinite(kl):
            raise NumericsError(
                "an answer's distance from the starting model is not finite",
                expected="a finite KL per token",
                found=str(kl),
                where=f"answer {place + 1}, in the order of the prompts",
                fix="look for numbers that are not finite in the adapter; if there are any, lower the learning rate",
            )


def _batches(asked: Sequence[tuple[Sequence[int], Sequence[int], bool]], batch_size: int) -> Iterator[list[int]]:
    """Places of the answers, those of like length together."""
    by_length = sorted(range(len(asked)), key=lambda place: len(asked[place][0]) + len(asked[place][1]))
    return (by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size))


def _row(prompt: Sequence[int], answer: Sequence[int], ended: bool) -> tuple[list[int], int]:
    """The ids that a model has to read, and how many of its last positions chose something."""
    chosen = max(len(answer) + ended, 1)
    return [*prompt, *answer][: len(prompt) + chosen - 1], chosen


def _batch_kl(
    model: PeftModel, rows: Sequence[tuple[list[int], int]], pad_id: int, device: torch.device | str, head: str
) -> list[float]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows], device=device)
    lengths = torch.tensor([len(ids) for ids, _ in rows], device=device)
    counts = torch.tensor([count for _, count in rows], device=device)
    at = torch.arange(width, device=device)
    within = at < lengths[:, None]
    places = (within & (at >= (lengths - counts)[:, None])).flatten().nonzero().squeeze(1)
    policy = _states(model, ids, within, places, head)
    with model.disable_adapter():
        reference = _states(model, ids, within, places, head)
    by_token = _token_kl(model, policy, reference, head).cpu().double()
    return [float(part.mean()) for part in torch.split(by_token, counts.tolist())]


def _states(model: PeftModel, ids: Tensor, within: Tensor, places: Tensor, head: str) -> Tensor:
    """(S, H) hidden states at the places, or (S, V) logits where the model makes them itself."""
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": within.long(), "use_cache": False}
    causal = causal_model(model)
    made: Tensor = causal(**given).logits if head == "model" else causal.base_model(**given).last_hidden_state
    return made.flatten(0, 1).index_select(0, places)


def _token_kl(model: PeftModel, policy: Tensor, reference: Tensor, head: str) -> Tensor:
    """(S,) float32: KL at each position, a chunk of positions at a time."""
    causal = causal_model(model)
    own = head_of(causal)

    def logits(states: Tensor) -> Tensor:
        return states.float() if head == "model" else own.capped(causal.get_output_embeddings()(states).float())

    size = max(1, _ELEMENTS // len(own.weight))
    found = []
    for begin in range(0, len(policy), size):
        p = logits(policy[begin : begin + size]).log_softmax(-1)
        with model.disable_adapter():  # the head may be adapted, too
            q = logits(reference[begin : begin + size]).log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(found)


@contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode; afterwards modes and `requires_grad` are as before, though peft sets the latter on switching."""
    wanted = {value: value.requires_grad for value in model.parameters()}
    try:
        with evaluating(model):
            yield
    finally:
        for value, wish in wanted.items():
            value.requires_grad_(wish)
