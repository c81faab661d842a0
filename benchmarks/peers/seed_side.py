"""The loop this project set out from, rendered anew: what it computes, not how it was written.

Two models stand in memory. At every step both take every row, padded to the maximal length whatever is in it; both make
logits for all positions, turn them into log-probabilities over the whole vocabulary in float32, and sum them under the
mask. (Its mask was one place off; here it is right, so that its loss is the loss.)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from benchmarks.serving import Job, serve
from benchmarks.workload import ADAM_BETAS, BETA, LEARNING_RATE, MAX_GRAD_NORM, lora_config
from engine.preferences.pairs import TokenPair, load_pairs


def full_width(pairs: Sequence[TokenPair], width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and label mask, each (2B, width): the chosen rows, then the rejected ones."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids, attention, scored = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row.input_ids)
        attention[place, : len(row)] = 1
        scored[place, : len(row)] = torch.tensor(row.label_mask)
    return ids.to(device), attention.to(device), scored.to(device)


def full_logps(model: Any, ids: Tensor, attention: Tensor, scored: Tensor) -> Tensor:
    """(2B,) float32: summed log-probabilities of the responses, by way of every logit of every position."""
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    every = logits[:, :-1].float().log_softmax(-1)
    return (every.gather(2, ids[:, 1:, None])[:, :, 0] * scored[:, 1:]).sum(-1)


def step_loss(policy: Any, reference: Any, pairs: Sequence[TokenPair], width: int, device: str = "cpu") -> Tensor:
    """The DPO loss of these pairs, mean over them; the reference is forwarded beside the policy."""
    batch = full_width(pairs, width, device)
    with torch.no_grad():
        ref = full_logps(reference, *batch)
    chosen, rejected = (full_logps(policy, *batch) - ref).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


class SeedSide:
    """See `Side`."""

    def __init__(self, job: Job) -> None:
        from peft import get_peft_model
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        folder, self.job = Path(job.folder), job
        policy, self.reference = (
            AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, job.dtype)).to(job.device)
            for _ in range(2)
        )
        self.reference.eval().requires_grad_(False)
        if job.checkpointing:
            policy.gradient_checkpointing_enable()
            policy.enable_input_require_grads()
        self.policy = get_peft_model(policy, lora_config()).train()
        self.start, self.pairs = load_file(folder / "adapter.safetensors"), load_pairs(folder / "pairs.parquet")

    def training(self, steps: list[list[int]]) -> Callable[[], list[float]]:
        """See `Side`."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.policy, self.start)
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=ADAM_BETAS, weight_decay=0.0)

        def run() -> list[float]:
            losses = [self._step([self.pairs[row] for row in rows], trained, optimizer) for rows in steps]
            return torch.stack(losses).tolist()

        return run

    def _step(self, pairs: list[TokenPair], trained: list[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
        size = self.job.together or len(pairs)
        total = torch.zeros((), device=self.job.device)
        for part in (pairs[begin : begin + size] for begin in range(0, len(pairs), size)):
            loss = step_loss(self.policy, self.reference, part, self.job.max_length, self.job.device)
            share = loss * len(part) / len(pairs)
            share.backward()
            total += share.detach()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return total

    def scoring(self, rows: int) -> Callable[[], list[float]]:
        """See `Side`; the loop itself never scores apart from training."""

        @torch.no_grad()
        def run() -> list[float]:
            found: list[float] = []
            for begin in range(0, rows, self.job.batch):
                batch = full_width(
                    self.pairs[begin : min(rows, begin + self.job.batch)], self.job.max_length, self.job.device
                )
                chosen, rejected = full_logps(self.reference, *batch).chunk(2)
                found += torch.stack([chosen, rejected], 1).flatten().tolist()
            return found

        return run


if __name__ == "__main__":
    serve(SeedSide)
