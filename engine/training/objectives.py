"""The two things this project minimises: the SFT loss over responses, and preference losses over pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.dpo.logps import sum_logps, token_logps
from engine.dpo.losses import PairLogps, StepCounts, WeightedSum
from engine.dpo.rewards import summed_metrics
from engine.models.padding import pad_rows
from engine.models.scoring import policy_logps
from engine.preferences.batching import by_length
from engine.preferences.pairs import TokenPair, TokenRow


@dataclass
class SftObjective:
    """Mean negative log-probability over the scored tokens of the step."""

    examples: Sequence[TokenRow]
    pad_id: int
    micro_batch: int
    device: torch.device

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """See `Objective`."""
        lengths = {row: len(self.examples[row]) for row in rows}
        return by_length(lengths, rows, self.micro_batch)

    def __call__(
        self, model: torch.nn.Module, rows: Sequence[int], step_rows: Sequence[int]
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        padded = pad_rows([self.examples[row] for row in rows], self.pad_id, self.device)
        logits = model(input_ids=padded.input_ids, use_cache=False).logits
        logps = sum_logps(token_logps(logits, padded.input_ids, padded.label_mask))
        return -logps.sum() / sum(self.examples[row].scored_tokens for row in step_rows), {}

    def describe(self, rows: Sequence[int]) -> str:
        """See `Objective`."""
        return "sft examples " + ", ".join(str(row) for row in rows)


@dataclass
class PreferenceObjective:
    """A weighted list of losses over pairs and their stored reference scores.

    Attributes:
        ref: (pairs, 2) float64, chosen and rejected reference logps of the same pairs.
    """

    pairs: Sequence[TokenPair]
    ref: Tensor
    loss: WeightedSum
    beta: float
    pad_id: int
    micro_batch_pairs: int

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """See `Objective`."""
        lengths = {row: self.pairs[row].length for row in rows}
        return by_length(lengths, rows, self.micro_batch_pairs)

    def logps(self, model: torch.nn.Module, rows: Sequence[int]) -> PairLogps:
        """Logps of these rows under the policy, with gradient, beside their reference logps."""
        return policy_logps(model, [self.pairs[row] for row in rows], self.ref[list(rows)], self.pad_id)

    def __call__(
        self, model: torch.nn.Module, rows: Sequence[int], step_rows: Sequence[int]
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`; the metrics are those of `summed_metrics`, as means over the step's pairs."""
        logps = self.logps(model, rows)
        step = StepCounts(len(step_rows), sum(self.pairs[row].chosen.scored_tokens for row in step_rows))
        metrics = {name: value / step.pairs for name, value in summed_metrics(logps, self.beta).items()}
        return self.loss(logps, step), metrics

    def describe(self, rows: Sequence[int]) -> str:
        """See `Objective`."""
        return "pairs " + ", ".join(self.pairs[row].pair_id for row in rows)
