import math
from typing import Any

import pytest
import torch

from benchmarks.peers.seed_side import full_logps, full_width, step_loss
from benchmarks.workload import BETA, PROFILES, SHAPES, make_model, make_pairs
from engine.preferences.pairs import TokenRow


@pytest.fixture(scope="module")
def policy() -> Any:
    model = make_model(SHAPES["tiny"], torch.float32, "cpu", seed=1).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def by_hand(model: Any, row: TokenRow) -> float:
    """The response's log-probability, a token at a time, without padding."""
    ids = torch.tensor(row.input_ids).long()
    every = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return sum(float(every[place - 1, ids[place]]) for place in range(len(ids)) if row.label_mask[place])


def test_the_loss_is_dpos_own_worked_out_by_hand(policy: Any) -> None:
    pairs = make_pairs(2, PROFILES["short"], SHAPES["tiny"].vocabulary, seed=5)
    reference = make_model(SHAPES["tiny"], torch.float32, "cpu", seed=1).eval()
    losses = []
    for pair in pairs:
        chosen, rejected = (by_hand(policy, row) - by_hand(reference, row) for row in pair.rows)
        losses.append(math.log1p(math.exp(-BETA * (chosen - rejected))))
    found = step_loss(policy, reference, pairs, 256)
    assert float(found.detach()) == pytest.approx(sum(losses) / 2, abs=1e-5)
    assert abs(losses[0] - math.log(2)) > 1e-3


def test_every_row_is_as_wide_as_the_longest_could_be() -> None:
    pairs = make_pairs(3, PROFILES["short"], 97)
    ids, attention, scored = full_width(pairs, 256, "cpu")
    assert ids.shape == attention.shape == scored.shape == (6, 256)
    assert attention.sum(1).tolist() == [len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs]
    assert scored.sum(1).tolist()[:3] == [pair.chosen.scored_tokens for pair in pairs]


def test_the_width_changes_no_score(policy: Any) -> None:
    pairs = make_pairs(2, PROFILES["short"], 97)
    with torch.no_grad():
        narrow, wide = (full_logps(policy, *full_width(pairs, width, "cpu")) for width in (256, 300))
    assert torch.allclose(narrow, wide, rtol=1e-5)
