"""This project's side: the product's own trainer and scoring, with stored reference scores.

All that the benchmarks know of the engine's way of running a model is in `OurSide`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from benchmarks.floor import matmul_rate
from benchmarks.serving import Job, serve
from benchmarks.workload import ADAM_BETAS, BETA, LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM
from engine.dpo.loss_table import build
from engine.models.fused_lora import fuse_lora
from engine.models.layers import compile_body, switch_on_checkpointing
from engine.models.loading import Place, load_model
from engine.models.lora import Lora, add_lora
from engine.models.passes import Passes
from engine.models.probe import choose_forward
from engine.models.scoring import PairScores, score_pairs
from engine.preferences.batching import BatchPlan
from engine.preferences.pairs import load_pairs
from engine.training.checkpoint import Checkpoints
from engine.training.loop import Optimization, StepRecord, Trainer
from engine.training.objectives import PreferenceObjective

PAD = 0
LORA = Lora(rank=LORA_RANK, alpha=LORA_ALPHA, dropout=0.0, targets="all-linear")
HOW = Optimization(LEARNING_RATE, "constant", 0.0, ADAM_BETAS, weight_decay=0.0, max_grad_norm=MAX_GRAD_NORM)
LOSS = build({"beta": BETA, "loss": [{"name": "sigmoid", "weight": 1.0}]})
TRAIN_TOKENS, SCORE_TOKENS = 4_096, 16_384  # the defaults of [runtime], which needs pydantic


class OurSide:
    """See `Side`."""

    def __init__(self, job: Job) -> None:
        folder, self.job = Path(job.folder), job
        self.pairs, self.start = load_pairs(folder / "pairs.parquet"), load_file(folder / "adapter.safetensors")
        policy = load_model(Place(str(folder / "model")), dtype=job.dtype)
        self.model = add_lora(policy, LORA, seed=0, base_name="benchmark").to(job.device)
        fuse_lora(self.model)
        if job.compile:
            compile_body(self.model)
        if job.checkpointing:
            switch_on_checkpointing(self.model)
        set_peft_model_state_dict(self.model, self.start)
        self.way = choose_forward(self.model, [pair.rows for pair in self.pairs], pad_id=PAD, wanted=job.layout)
        self.train_passes = Passes(self.way, job.budget or TRAIN_TOKENS, PAD)
        self.score_passes = Passes(self.way, job.score_budget or SCORE_TOKENS, PAD)
        self.ref = torch.tensor(sums(self.scores(len(self.pairs))), dtype=torch.float64).view(-1, 2)

    def plan(self, rows: int) -> BatchPlan:
        """The steps over the first `rows` pairs, which every side takes."""
        return BatchPlan(rows, self.job.batch, epochs=1, seed=0)

    def training(self, steps: list[list[int]]) -> Callable[[], list[float]]:
        """See `Side`."""
        plan = self.plan(sum(map(len, steps)))
        assert list(plan.steps_from(0)) == steps, "every side goes through the pairs in the same order"
        set_peft_model_state_dict(self.model, self.start)
        losses: list[float] = []

        def keep(record: StepRecord) -> None:
            losses.append(record.numbers["loss"])

        trainer = Trainer(
            self.model,
            PreferenceObjective(self.pairs, self.ref, LOSS, BETA, self.train_passes),
            plan,
            HOW,
            Accelerator(cpu=self.job.device == "cpu"),
            Checkpoints(Path(tempfile.mkdtemp(dir=self.job.folder)), 1),  # none to go on from
            keep,
            checkpoint_seconds=float("inf"),
        )

        def run() -> list[float]:
            trainer.run()
            return losses

        return run

    def scores(self, rows: int) -> list[PairScores]:
        """Reference scores of the first pairs: those of the policy without its adapter."""
        with self.model.disable_adapter():
            return score_pairs(self.model, self.pairs[:rows], self.score_passes)

    def scoring(self, rows: int) -> Callable[[], list[float]]:
        """See `Side`."""
        return lambda: sums(self.scores(rows))

    def token_logps(self, rows: int) -> list[float]:
        """Log-probability of every scored token of the first pairs under the reference."""
        sides = ((score.chosen_token_logps, score.rejected_token_logps) for score in self.scores(rows))
        return [value for chosen, rejected in sides for value in (*chosen, *rejected)]


def sums(scores: list[PairScores]) -> list[float]:
    """Chosen and rejected sum of every pair, one after the other."""
    return [value for score in scores for value in (score.chosen_logps, score.rejected_logps)]


def _plan(side: OurSide, command: dict[str, Any]) -> list[list[int]]:
    return list(side.plan(command["rows"]).steps_from(0))


def _token_logps(side: OurSide, command: dict[str, Any]) -> list[float]:
    return side.token_logps(command["rows"])


def _matmul(side: OurSide, command: dict[str, Any]) -> float:
    return matmul_rate(side.job.device, side.job.dtype)


if __name__ == "__main__":
    serve(OurSide, {"plan": _plan, "token_logps": _token_logps, "matmul": _matmul})
