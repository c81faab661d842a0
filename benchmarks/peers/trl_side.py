"""TRL's DPOTrainer at its best for the job, in TRL's own environment.

Reference scores are precomputed, gradients are not checkpointed unless all sides do, nothing is logged, evaluated or
saved, and ids go in instead of text, so that none of its time is tokenizing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from benchmarks.serving import Job, serve
from benchmarks.workload import ADAM_BETAS, BETA, EOS, LEARNING_RATE, MAX_GRAD_NORM, lora_config, prompt_length
from engine.preferences.pairs import TokenPair, load_pairs


class IdsTrainer(DPOTrainer):
    """A DPOTrainer over pairs that are ids already; it keeps the loss of every micro-batch."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        loss = super().compute_loss(*arguments, **named)
        self.losses.append(loss.detach())
        return loss


class TrlSide:
    """See `Side`."""

    def __init__(self, job: Job) -> None:
        folder, self.job = Path(job.folder), job
        self.start = load_file(folder / "adapter.safetensors")
        self.data = Dataset.from_list([columns(pair) for pair in load_pairs(folder / "pairs.parquet")])
        self.trainer = IdsTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, job.dtype)),
            args=arguments(job),
            train_dataset=self.data,
            processing_class=stand_in_tokenizer(),
            peft_config=lora_config(),
        )
        self.scored, self.passes = self.trainer.train_dataset, 0

    def training(self, steps: list[list[int]]) -> Callable[[], list[float]]:
        """See `Side`."""
        trainer, together = self.trainer, self.job.together or self.job.batch
        set_peft_model_state_dict(trainer.model, self.start)
        trainer.optimizer = trainer.lr_scheduler = None  # otherwise the next run goes on with this one's
        order = [row for rows in steps for row in rows]
        trainer.train_dataset = Dataset.from_list(self.scored.select(order).to_list())

        def run() -> list[float]:
            trainer.losses = []
            trainer.train()
            return step_losses(torch.stack(trainer.losses).tolist(), [len(rows) for rows in steps], together)

        return run

    def scoring(self, rows: int) -> Callable[[], list[float]]:
        """See `Side`: TRL's own precompute pass, its cache file included."""
        data = Dataset.from_list(self.data.select(range(rows)).to_list())
        self.passes += 1
        self.trainer._precompute_model_hash = f"pass {self.passes}"  # its cache must not answer
        size = self.trainer.args.precompute_ref_batch_size

        def run() -> list[float]:
            scored = self.trainer._precompute_ref_logps(data, "score", size)
            return [value for row in scored.to_list() for value in (row["ref_chosen_logps"], row["ref_rejected_logps"])]

        return run


def step_losses(parts: list[float], sizes: list[int], together: int) -> list[float]:
    """The mean loss of every step from those of its micro-batches of `together` pairs."""
    waiting = iter(parts)
    counts = [[min(together, size - done) for done in range(0, size, together)] for size in sizes]
    return [sum(next(waiting) * count for count in step) / sum(step) for step in counts]


def columns(pair: TokenPair) -> dict[str, list[int]]:
    """A pair as TRL's collator takes it."""
    prompt = prompt_length(pair)
    return {
        "prompt_ids": pair.chosen.input_ids[:prompt].tolist(),
        "chosen_ids": pair.chosen.input_ids[prompt:].tolist(),
        "rejected_ids": pair.rejected.input_ids[prompt:].tolist(),
    }


def arguments(job: Job) -> DPOConfig:
    """TRL's settings: what the other sides do, and nothing besides."""
    together = job.together or job.batch
    return DPOConfig(
        output_dir=str(Path(job.folder) / "trl"),
        beta=BETA,
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=job.score_together or together,
        per_device_train_batch_size=together,
        gradient_accumulation_steps=job.batch // together,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        gradient_checkpointing=job.checkpointing,
        bf16=job.dtype == "bfloat16",
        use_cpu=job.device == "cpu",
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def stand_in_tokenizer() -> PreTrainedTokenizerFast:
    """Nothing is tokenized; TRL asks it for the pad id."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": EOS}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    serve(TrlSide)
