"""TRL 1.16.0 as the oracle for numbers, and this project's own training over the same weights, pairs and order."""

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.dpo.losses import weighted_sum
from engine.models.forward import PLAIN, Forward
from engine.models.fused_lora import fuse_lora
from engine.models.lora import Lora, add_lora
from engine.models.passes import Passes
from engine.models.scoring import PairScores, score_pairs
from engine.preferences.batching import BatchPlan
from engine.preferences.pairs import TokenPair, TokenRow
from engine.training.loop import Optimization, StepRecord
from engine.training.objectives import PreferenceObjective
from engine.training.run import Upkeep, train

VOCABULARY, PAD, EOS = 97, 0, 2
LORA = Lora(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
HOW = Optimization(learning_rate=2e-3, schedule="linear", warmup_share=0.25)

PACKED_ROWS = Passes(Forward("packed", "fused"), budget=200, pad_id=PAD)

Numbers = dict[str, float]


@dataclass(frozen=True)
class Case:
    """Everything both sides are given.

    Attributes:
        start: the frozen policy under an adapter that already changes it, so that no margin is zero at any step.
        scores: of the policy without the adapter, the reference.
        terms: the loss as a config's list.
    """

    start: PeftModel
    pairs: list[TokenPair]
    scores: list[PairScores]
    folder: Path
    beta: float = 0.1
    batch_size: int = 4
    terms: Sequence[tuple[str, float]] = (("sigmoid", 1.0),)
    label_smoothing: float = 0.0
    passes: Passes = PACKED_ROWS

    @property
    def plan(self) -> BatchPlan:
        """One epoch, whose last step is not full."""
        return BatchPlan(len(self.pairs), self.batch_size, epochs=1, seed=3)

    @property
    def ref(self) -> torch.Tensor:
        """(pairs, 2) float64."""
        rows = [[score.chosen_logps, score.rejected_logps] for score in self.scores]
        return torch.tensor(rows, dtype=torch.float64)


@dataclass
class Outcome:
    """The numbers of every step, and the adapter's weights afterwards."""

    steps: list[Numbers] = field(default_factory=list)
    adapter: dict[str, torch.Tensor] = field(default_factory=dict)


def ours(case: Case) -> Outcome:
    """This project's objective, losses and loop over the case."""
    model, found = copy.deepcopy(case.start).train(), Outcome()
    fuse_lora(model)
    terms = [{"name": name, "weight": weight, "label_smoothing": case.label_smoothing} for name, weight in case.terms]
    objective = PreferenceObjective(
        pairs=case.pairs,
        ref=case.ref,
        loss=weighted_sum(terms, case.beta),
        beta=case.beta,
        passes=case.passes,
    )
    work = Path(tempfile.mkdtemp(dir=case.folder))  # what another training left would be gone on from
    upkeep = Upkeep("train", work, logging.getLogger("oracle"), lambda done, total, numbers: None)

    def keep(record: StepRecord) -> None:
        found.steps.append(record.numbers)

    train(model, objective, case.plan, HOW, Accelerator(cpu=True), upkeep, keep)
    found.adapter = get_peft_model_state_dict(model)
    return found


def theirs(case: Case, loss_types: Sequence[str] = (), ref_columns: Any = None) -> Outcome:
    """TRL's trainer over the case: the whole step as one batch, the rows in the order of our plan.

    Args:
        loss_types: TRL's names where they are not ours.
        ref_columns: table with `ref_chosen_logps` and `ref_rejected_logps` by `pair_id`, in place of TRL's own scoring.
    """
    from trl import DPOConfig, DPOTrainer

    found = Outcome()

    class Oracle(DPOTrainer):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset  # it only knows how to tokenize text, and these are the ids themselves

        def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset  # the columns are there

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            found.steps.append({"loss": float(loss.detach())})
            return loss

        def log(self, logs: dict[str, float], *rest: Any) -> None:
            unrounded = {key: sum(values) / len(values) for key, values in self._metrics["train"].items()}
            if "grad_norm" in logs:
                found.steps[-1] |= unrounded | {key: logs[key] for key in ("grad_norm", "learning_rate")}
            super().log(logs, *rest)

    arguments = DPOConfig(
        output_dir=str(case.folder / "theirs"),
        beta=case.beta,
        loss_type=list(loss_types) or [name for name, _ in case.terms],
        loss_weights=[weight for _, weight in case.terms],
        label_smoothing=case.label_smoothing,
        per_device_train_batch_size=case.batch_size,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=HOW.learning_rate,
        lr_scheduler_type=HOW.schedule,
        warmup_steps=HOW.warmup_share,
        adam_beta1=HOW.betas[0],
        adam_beta2=HOW.betas[1],
        weight_decay=HOW.weight_decay,
        max_grad_norm=HOW.max_grad_norm,
        max_length=None,
        precompute_ref_log_probs=ref_columns is not None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    base = copy.deepcopy(case.start).unload()
    trainer = Oracle(
        model=base,
        args=arguments,
        train_dataset=_dataset(case, ref_columns),
        processing_class=_tokenizer(),
        peft_config=case.start.peft_config["default"],
    )
    set_peft_model_state_dict(trainer.model, get_peft_model_state_dict(case.start))
    trainer.train()
    found.adapter = get_peft_model_state_dict(trainer.model)
    return found


def _dataset(case: Case, ref_columns: Any) -> Dataset:
    """The pairs as TRL's collator takes them, in the order in which our plan goes through them."""
    ref = {row["pair_id"]: row for row in ref_columns.to_pylist()} if ref_columns is not None else {}
    names = ("ref_chosen_logps", "ref_rejected_logps")
    rows = []
    for pair in (case.pairs[row] for row in case.plan.order(0)):
        prompt = len(pair.chosen) - pair.chosen.scored_tokens
        ids = {
            "prompt_ids": pair.chosen.input_ids[:prompt].tolist(),
            "chosen_ids": pair.chosen.input_ids[prompt:].tolist(),
            "rejected_ids": pair.rejected.input_ids[prompt:].tolist(),
        }
        rows.append(ids | ({name: ref[pair.pair_id][name] for name in names} if ref else {}))
    return Dataset.from_list(rows)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Nothing is tokenized; TRL asks it for the pad id."""
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": PAD, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def random_pairs(count: int, seed: int) -> list[TokenPair]:
    """Prompts of 2 to 16 ids and responses of 1 to 40, so that every batch is padded; pad is an id like any other."""
    random = np.random.default_rng(seed)

    def row(prompt: Any, length: int) -> TokenRow:
        response = random.integers(0, VOCABULARY, length).astype(np.int32)
        ids = np.concatenate([prompt, response, [EOS]]).astype(np.int32)
        return TokenRow(ids, np.arange(len(ids)) >= len(prompt))

    found = []
    for index in range(count):
        prompt = random.integers(0, VOCABULARY, random.integers(2, 17)).astype(np.int32)
        sides = [row(prompt, int(random.integers(1, 41))) for _ in range(2)]
        found.append(TokenPair(f"{index:016x}", "random", *sides))
    return found


def random_start(*, tied: bool) -> PeftModel:
    """A random Llama whose predictions are far from uniform, under an adapter that is not at its beginning."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.25,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    model = add_lora(LlamaForCausalLM(config).eval(), LORA, seed=1, base_name="random")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Case]:
    """Makes a case: 38 pairs, ten steps of which the last holds two; keyword arguments are those of `Case`."""

    def make(*, tied: bool = False, count: int = 38, **others: Any) -> Case:
        start, pairs = random_start(tied=tied), random_pairs(count, seed=11)
        with start.disable_adapter():
            scores = score_pairs(start, pairs, Passes(PLAIN, 400, PAD))
        return Case(start, pairs, scores, tmp_path, **others)

    return make


@pytest.fixture
def train_here() -> Callable[[Case], Outcome]:
    return ours


@pytest.fixture
def train_there() -> Callable[..., Outcome]:
    return theirs
