"""Rows of tokens through a model, to the log-probability of every scored token: in what layout, and by whose head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from engine.dpo.head import Head, target_logps, target_logps_and_squares
from engine.dpo.logps import log_sum_squares, token_logps
from engine.models.attention import PACKED, Spans
from engine.models.layouts import Batch, Group, Layout, lay_out
from engine.models.padding import pad_rows
from engine.preferences.pairs import TokenRow


@dataclass(frozen=True)
class Forward:
    """One way to compute the same logps.

    Attributes:
        head: `fused` never holds the logits of all tokens; `module` calls the model's head at scored positions;
            `model` takes the logits the model itself returns for every position.
    """

    layout: Layout
    head: Literal["fused", "module", "model"]

    def __str__(self) -> str:
        return f"{self.layout} rows, {HEADS[self.head]}"


HEADS = {"fused": "fused head", "module": "the model's head", "model": "all logits"}

PLAIN = Forward("single", "model")  # right for every causal model; the others are held against it


@dataclass(frozen=True)
class RowLogps:
    """Log-probabilities of the scored tokens of rows.

    Attributes:
        tokens: (S,) float32, nats, row by row.
        counts: scored tokens of each row.
        squares: (S,) float32, log Σ_v p_v² of the distribution each token was drawn against, without gradient; None
            where nobody asked.
    """

    tokens: Tensor
    counts: list[int]
    squares: Tensor | None = None

    def sums(self, weights: Tensor | None = None) -> Tensor:
        """(rows,): each row's sum, accumulated in float64 (float32 where a device has none).

        Args:
            weights: (S,) what each token counts; all the same without it.
        """
        wide = torch.float32 if self.tokens.device.type == "mps" else torch.float64
        values = self.tokens.to(wide)
        values = values if weights is None else values * weights.to(values)
        counts = torch.tensor(self.counts, device=self.tokens.device)
        owner = torch.arange(len(self.counts), device=self.tokens.device).repeat_interleave(counts)
        return torch.zeros(len(self.counts), dtype=wide, device=self.tokens.device).index_add(0, owner, values)

    def likeness(self) -> Tensor:
        """(rows,): how much a row is what the model would say: exp of the mean over its tokens of logp − log Σ p².

        The weight of a response in WPO (Zhou et al. 2024, eq. 2), without gradient; 1 for a row of nothing.

        Raises:
            ValueError: log Σ p² was not asked for.
        """
        if self.squares is None:
            raise ValueError("the rows went through the model without log Σ p²")
        aligned = RowLogps(self.tokens.detach() - self.squares, self.counts).sums()
        return (aligned / aligned.new_tensor(self.counts).clamp(min=1)).exp()

    def by_row(self) -> list[list[float]]:
        """The tokens of each row as numbers."""
        return [part.tolist() for part in torch.split(self.tokens.detach().cpu(), self.counts)]


def row_logps(
    model: nn.Module, groups: Sequence[Group], forward: Forward, pad_id: int, *, squares: bool = False
) -> RowLogps:
    """Logps of the scored tokens of every row of the groups, with gradient where it is enabled.

    Args:
        model: a causal language model of transformers, or a PeftModel around one, on its device.
        squares: log Σ_v p_v² at every scored token as well.

    Raises:
        CannotPack: the layout is `packed` and the model's attention is not of that kind.
    """
    if forward.head == "model":
        rows = [row for group in groups for row in group]
        together = [[row] for row in rows] if forward.layout == "single" else [rows]
        return _joined([_all_logits(model, part, pad_id, squares) for part in together])
    device = next(model.parameters()).device
    batch = lay_out(groups, forward.layout, pad_id, device)
    causal = causal_model(model)
    hidden = _hidden(causal, batch).flatten(0, 1).index_select(0, batch.places)
    head = head_of(causal)
    if forward.head == "fused" and squares:
        tokens, squared = target_logps_and_squares(hidden, head, batch.targets)
        return RowLogps(tokens, batch.counts, squared)
    if forward.head == "fused":
        return RowLogps(target_logps(hidden, head, batch.targets), batch.counts)
    logits = head.capped(causal.get_output_embeddings()(hidden).float())
    tokens = -nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return RowLogps(tokens, batch.counts, log_sum_squares(logits) if squares else None)


def _all_logits(model: nn.Module, rows: Sequence[TokenRow], pad_id: int, squares: bool) -> RowLogps:
    """Padded rows, and the logits that the model itself returns for every position of them."""
    padded = pad_rows(rows, pad_id, next(model.parameters()).device)
    logits = model(input_ids=padded.input_ids, use_cache=False).logits
    logps = token_logps(logits, padded.input_ids, padded.label_mask)
    scored = padded.label_mask[:, 1:]
    squared = log_sum_squares(logits[:, :-1][scored]) if squares else None
    return RowLogps(logps[scored], scored.sum(1).tolist(), squared)


def _joined(parts: Sequence[RowLogps]) -> RowLogps:
    squares = [part.squares for part in parts if part.squares is not None]
    counts = [count for part in parts for count in part.counts]
    return RowLogps(torch.cat([part.tokens for part in parts]), counts, torch.cat(squares) if squares else None)


def causal_model(model: nn.Module) -> Any:
    """The causal language model itself, adapters in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _hidden(causal: Any, batch: Batch) -> Tensor:
    """(R, T, H): what the head is applied to."""
    given: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if isinstance(batch.attention, Spans):
        if causal.config._attn_implementation != PACKED:
            causal.set_attn_implementation(PACKED)
        # A mask of four dimensions is passed through to the attention as it is; ours needs none.
        given |= {"attention_mask": batch.input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool), "spans": batch.attention}
    elif batch.attention is not None:
        given["attention_mask"] = _additive(batch.attention, causal.dtype)
    hidden: Tensor = causal.base_model(**given).last_hidden_state
    return hidden


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token is seen and −∞ elsewhere, which every attention of transformers adds to its scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def head_of(causal: Any) -> Head:
    """The model's head as its configuration describes it."""
    layer, config = causal.get_output_embeddings(), causal.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    weight = getattr(layer, "base_layer", layer).weight
    return Head(weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def takes_fused_head(causal: Any) -> bool:
    """Whether the head is a plain linear layer in full precision, and not, for one, adapted."""
    layer = causal.get_output_embeddings()
    return type(layer) is nn.Linear and layer.weight.is_floating_point()
