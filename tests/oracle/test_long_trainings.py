"""A longer training than those of each loss, and real text: through TRL's DPOTrainer and through this project."""

import gzip
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.preferences.pairs import TokenPair, TokenRow
from engine.preferences.tokenizing import train_bpe

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
VOCABULARY, LONGEST = 512, 250  # ids of the byte-level BPE, and of a response
EVERY_LOSS_OF_MPO = (("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0))


def test_fifty_steps_have_the_numbers_of_trl_and_end_in_the_same_model(
    case: Make, train_here: Make, train_there: Make, assert_same: Make, logps_after: Make
) -> None:
    made = case(count=200)
    ours, theirs = train_here(made), train_there(made)
    assert len(ours.steps) == 50
    assert_same(ours, theirs, made.beta)
    here, there = logps_after(made, ours), logps_after(made, theirs)
    assert float((here - made.ref).abs().max()) > 5  # nats: it trained
    apart = (here - there).abs() / there.abs().clamp(min=1)
    print(f"final logps: {float(apart.max()):.1e}")
    assert float(apart.max()) < 1e-5


@pytest.fixture(scope="module")
def real_pairs() -> list[TokenPair]:
    """Ten pairs of Chinese text in ids of a small vocabulary that is trained on them; responses of up to 250 ids."""
    file = Path(os.environ.get("DPO_TEST_DATA", "")) / "pairs_zh_jade_safety_650.jsonl.gz"
    if not file.is_file():
        pytest.skip("set DPO_TEST_DATA to the folder of the public data sets")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 10)]
    words = train_bpe((text for row in rows for text in row.values() if isinstance(text, str)), VOCABULARY)
    end = [words.eos_token_id]

    def side(row: dict[str, str], name: str) -> TokenRow:
        prompt = words(row["query"], add_special_tokens=False)["input_ids"]
        response = words(row[name], add_special_tokens=False)["input_ids"][:LONGEST] + end
        ids = np.array(prompt + response, dtype=np.int32)
        return TokenRow(ids, np.arange(len(ids)) >= len(prompt))

    return [TokenPair(str(at), "jade", side(row, "chosen"), side(row, "rejected")) for at, row in enumerate(rows)]


@pytest.mark.parametrize(
    "shared", [{}, {"ld_alpha": 0.5}, {"f_divergence_type": "js_divergence"}, {"use_weighting": True}], ids=str
)
def test_real_text_has_the_numbers_of_trl(
    real_pairs: list[TokenPair], case_of: Make, train_here: Make, train_there: Make, assert_same: Make, shared: Any
) -> None:
    made = case_of(real_pairs, VOCABULARY, shared=shared)
    assert float(made.ref.abs().max()) > 500  # nats: what sums in float32 are rough at
    ours, theirs = train_here(made), train_there(made)
    assert len(ours.steps) == 3
    assert_same(ours, theirs, made.beta)


def test_real_text_has_the_numbers_of_trl_under_several_losses(
    real_pairs: list[TokenPair], case_of: Make, train_here: Make, train_there: Make, assert_same: Make
) -> None:
    made = case_of(real_pairs, VOCABULARY, terms=EVERY_LOSS_OF_MPO)
    assert_same(train_here(made), train_there(made), made.beta)
