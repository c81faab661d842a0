"""TRL 1.16.0 as the oracle for numbers, and this project's own training over the same weights, pairs and order."""

import copy
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
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

from engine.dpo.loss_table import build
from engine.loss_config import PARAMETERS
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

TOLERANCE = 1e-5
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
LOGPS = ("logps/chosen", "logps/rejected")

Numbers = dict[str, float]


@dataclass(frozen=True)
class Case:
    """Everything both sides are given.

    Attributes:
        start: the frozen policy under an adapter that already changes it, so that no margin is zero at any step.
        scores: of the policy without the adapter, the reference.
        terms: names and weights of the loss's terms.
        label_smoothing: of every term that has one.
        shared: `f_divergence_type`, `f_alpha_divergence_coef`, `ld_alpha` and `use_weighting`, which have one name here
            and in TRL.
    """

    start: PeftModel
    pairs: list[TokenPair]
    scores: list[PairScores]
    folder: Path
    beta: float = 0.1
    batch_size: int = 4
    terms: Sequence[tuple[str, float]] = (("sigmoid", 1.0),)
    label_smoothing: float = 0.0
    shared: Mapping[str, Any] = field(default_factory=dict)
    passes: Passes = PACKED_ROWS

    @property
    def plan(self) -> BatchPlan:
        """One epoch, whose last step is not full."""
        return BatchPlan(len(self.pairs), self.batch_size, epochs=1, seed=3)

    @property
    def ref(self) -> torch.Tensor:
        """(pairs, 2) float64, weighted where the loss has it so."""
        return torch.tensor([score.sums(self.shared.get("ld_alpha")) for score in self.scores], dtype=torch.float64)

    @property
    def spec(self) -> dict[str, Any]:
        """The loss as a training hands it down."""
        given = {"label_smoothing": self.label_smoothing, "discopop_tau": 0.05}
        terms = [
            {"name": name, "weight": weight} | {key: given[key] for key in PARAMETERS[name] if key in given}
            for name, weight in self.terms
        ]
        return {"beta": self.beta, "loss": terms, **self.shared}


@dataclass
class Outcome:
    """The numbers of every step, and the adapter's weights afterwards.

    Attributes:
        sums: the names among `LOGPS` that mean the same here and in TRL, which under LD-DPO reports the weighted sums.
    """

    sums: Sequence[str] = LOGPS
    steps: list[Numbers] = field(default_factory=list)
    adapter: dict[str, torch.Tensor] = field(default_factory=dict)


def ours(case: Case) -> Outcome:
    """This project's objective, losses and loop over the case."""
    model, found = copy.deepcopy(case.start).train(), Outcome(() if case.shared.get("ld_alpha") is not None else LOGPS)
    fuse_lora(model)
    objective = PreferenceObjective(
        pairs=case.pairs,
        ref=case.ref,
        loss=build(case.spec),
        beta=case.beta,
        passes=case.passes,
        whole_ref=torch.tensor([score.sums() for score in case.scores], dtype=torch.float64),
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
        **case.shared,
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
        processing_class=_tokenizer(case.start.config.vocab_size),
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


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Nothing is tokenized; TRL asks it for the pad id."""
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": PAD, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, size)}
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


def random_start(*, tied: bool, vocabulary: int = VOCABULARY) -> PeftModel:
    """A random Llama whose predictions are far from uniform, under an adapter that is not at its beginning."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
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


def made_of(pairs: list[TokenPair], start: PeftModel, folder: Path, **others: Any) -> Case:
    """A case over pairs that the policy under the adapter has scored."""
    with start.disable_adapter():
        scores = score_pairs(start, pairs, Passes(PLAIN, 400, PAD))
    return Case(start, pairs, scores, folder, **others)


def deviations(ours: Outcome, theirs: Outcome, beta: float) -> dict[str, float]:
    """The largest deviation of every number over the steps, relative to what the tolerance is of; also printed."""
    assert len(ours.steps) == len(theirs.steps)
    highest_rate = max(step["learning_rate"] for step in theirs.steps)
    found: dict[str, float] = {}
    for here, there in zip(ours.steps, theirs.steps, strict=True):
        size = max(abs(there[name]) for name in LOGPS)
        scales = {name: max(1.0, beta * size) for name in REWARDS} | {name: max(1.0, size) for name in ours.sums}
        scales |= {
            "loss": max(1.0, beta * size, abs(there["loss"])),
            "rewards/accuracies": 1.0,
            "grad_norm": max(1.0, there["grad_norm"]),
            "learning_rate": highest_rate,
        }
        for name, scale in scales.items():
            found[name] = max(found.get(name, 0.0), abs(here[name] - there[name]) / scale)
    print({name: f"{value:.1e}" for name, value in found.items()})
    return found


def hold(ours: Outcome, theirs: Outcome, beta: float) -> None:
    found = deviations(ours, theirs, beta)
    # Gradients of long sums differ more than the sums: clipped to norm 1, they are held to ten times the tolerance.
    bounds = {name: TOLERANCE * (10 if name == "grad_norm" else 1) for name in found}
    assert {name: value for name, value in found.items() if not value <= bounds[name]} == {}


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Case]:
    """Makes a case: 38 pairs, ten steps of which the last holds two; keyword arguments are those of `Case`."""

    def make(*, tied: bool = False, count: int = 38, **others: Any) -> Case:
        return made_of(random_pairs(count, seed=11), random_start(tied=tied), tmp_path, **others)

    return make


@pytest.fixture
def case_of(tmp_path: Path) -> Callable[..., Case]:
    """Makes a case of given pairs over a vocabulary of that size."""

    def make(pairs: list[TokenPair], vocabulary: int, **others: Any) -> Case:
        return made_of(pairs, random_start(tied=False, vocabulary=vocabulary), tmp_path, **others)

    return make


@pytest.fixture
def train_here() -> Callable[[Case], Outcome]:
    return ours


@pytest.fixture
def train_there() -> Callable[..., Outcome]:
    return theirs


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Holds every number of every step against TRL's."""
    return hold


@pytest.fixture
def logps_after() -> Callable[[Case, Outcome], torch.Tensor]:
    """(pairs, 2): what the case's pairs score under the adapter that a training ended in."""

    def score(case: Case, outcome: Outcome) -> torch.Tensor:
        model = copy.deepcopy(case.start)
        set_peft_model_state_dict(model, outcome.adapter)
        return torch.tensor([score.sums() for score in score_pairs(model, case.pairs, Passes(PLAIN, 400, PAD))])

    return score
