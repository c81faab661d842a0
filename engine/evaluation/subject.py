"""A policy under judgement: the starting policy with an adapter on it, which scores pairs and answers prompts."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.pace import Part, with_tokens
from engine.policies import open_policy, open_tokenizer
from engine.prompts import Prompt
from engine.sources import ModelSource
from engine.stage import Context
from engine.store import Artifact

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

    from engine.answering import Answer
    from engine.models.generation import GenerationSettings
    from engine.models.scoring import PairScores
    from engine.preferences.pairs import TokenPair
    from engine.preferences.templates import Template


def _unheard(done: int, tokens: int) -> None:
    """Hears of progress where nobody wants to."""


@dataclass
class Subject:
    """It holds a whole model in memory, on its device and in eval mode.

    Attributes:
        max_prompt_length: ids that a prompt is cut to, as its training pairs were.
        head: how its logits are had, as `Forward` has it; scoring pairs settles it.
    """

    model: "PeftModel"
    template: "Template"
    max_prompt_length: int
    device: "torch.device"
    head: Literal["fused", "module", "model"] = "module"

    @classmethod
    def open(
        cls, ctx: Context[Any], inputs: Mapping[str, Artifact], source: ModelSource, how: Mapping[str, Any]
    ) -> "Subject":
        """Loads the policy that `tokenize`, `sft` (or what was given instead) and `train` made.

        Args:
            inputs: the artifacts of those stages.
            how: `dtype`, `attention` and `quantization` that its reference was scored under.

        Raises:
            ModelError: it cannot be loaded, or its parts do not belong together.
            TransientError: the Hub did not answer.
        """
        from peft import PeftModel

        from engine.models.devices import pick_device, placed
        from engine.models.fused_lora import fuse_lora
        from engine.models.quantization import check_quantization
        from engine.preferences.templates import template

        device = pick_device(ctx.runtime.device, ctx.runtime.threads, deterministic=ctx.runtime.deterministic)
        check_quantization(how["quantization"], how["dtype"], device)
        policy = placed(open_policy(inputs, source, ctx.sources, **how), device)
        adapted = PeftModel.from_pretrained(policy, str(inputs["train"].file("adapter")))
        fuse_lora(adapted)
        tokenized = inputs["tokenize"]
        form = template(tokenized.handed_down["template"], open_tokenizer(tokenized, source), sealed=True)
        return cls(adapted.eval(), form, tokenized.handed_down["max_prompt_length"], device)

    def scores(
        self,
        ctx: Context[Any],
        pairs: "Sequence[TokenPair]",
        *,
        reference: bool = False,
        progress: Part = _unheard,
    ) -> "Tensor":
        """(pairs, 2) float64 on the CPU: logps of the chosen and the rejected responses.

        Args:
            reference: of the starting policy, the adapter switched off.
            progress: as `pair_scores` has it.
        """
        import torch

        scores = self.pair_scores(ctx, pairs, reference=reference, progress=progress)
        return torch.tensor([each.sums() for each in scores], dtype=torch.float64).reshape(-1, 2)

    def pair_scores(
        self, ctx: Context[Any], pairs: "Sequence[TokenPair]", *, reference: bool = False, progress: Part = _unheard
    ) -> "list[PairScores]":
        """The logps of every scored token of the pairs, and their sums, in the pairs' order.

        Args:
            reference: of the starting policy, the adapter switched off.
            progress: told how many pairs are done, and the tokens of those that are new, both sides.
        """
        from engine.fitting import scoring_passes
        from engine.models.scoring import score_parts

        with self.model.disable_adapter() if reference else nullcontext():
            passes = scoring_passes(ctx, self.model, pairs, self._pad_id)
            self.head = passes.forward.head
            parts = passes.split({row: pair.rows for row, pair in enumerate(pairs)})
            sizes = [sum(map(len, pairs[row].rows)) for part in parts for row in part]
            progress(0, 0)  # only now does it begin: what the passes took to settle is no scoring
            scores = score_parts(self.model, pairs, parts, passes, progress=with_tokens(progress, sizes))
        return [scores[row] for row in range(len(pairs))]

    def answers(
        self,
        ctx: Context[Any],
        prompts: Sequence[Prompt],
        settings: "GenerationSettings",
        seed: int,
        *,
        reference: bool = False,
        progress: Part = _unheard,
    ) -> "list[Answer]":
        """One answer a prompt, in order.

        Args:
            reference: of the starting policy, the adapter switched off.
            progress: told how many prompts are answered, and the tokens of the answers that are new.
        """
        from engine.answering import answer

        with self.model.disable_adapter() if reference else nullcontext():
            return answer(
                self.model,
                self.template,
                [prompt.prompt for prompt in prompts],
                settings=settings,
                max_prompt_length=self.max_prompt_length,
                seed=seed,
                batch_size=ctx.runtime.generation_batch,
                device=self.device,
                progress=progress,
            )

    def divergence(
        self, ctx: Context[Any], said: "Sequence[Answer]", *, progress: Part = _unheard
    ) -> list[float | None]:
        """KL to the starting policy per token of each of its own answers, in nats; see `answer_kl`.

        Of a prompt that could not be asked there is none.

        Args:
            progress: told how many answers are done; of tokens it hears nothing.
        """
        from engine.models.divergence import answer_kl

        asked = [each for each in said if each.prompt_ids]
        found = iter(
            answer_kl(
                self.model,
                [each.prompt_ids for each in asked],
                [each.ids for each in asked],
                [each.ended for each in asked],
                batch_size=ctx.runtime.generation_batch,
                pad_id=self._pad_id,
                device=self.device,
                head=self.head,
                progress=lambda done, _: progress(done, 0),
            )
        )
        return [next(found) if each.prompt_ids else None for each in said]

    @property
    def _pad_id(self) -> int:
        return self.template.tokenizer.pad_token_id or 0
