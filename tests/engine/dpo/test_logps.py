import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.dpo.logps import ld_weights, log_sum_squares, token_logps

# P P BOS r1 r2 EOS PAD: response and EOS are scored, the prompt, BOS and padding never.
IDS = torch.tensor([[5, 6, 1, 3, 4, 2, 0]])
MASK = torch.tensor([[False, False, False, True, True, True, False]])


def predicting(probabilities: list[float], ids: torch.Tensor, vocabulary: int = 8) -> torch.Tensor:
    """Logits (1, T, V) under which position t gives `probabilities[t]` to the token that follows it."""
    rows = []
    for probability, following in zip(probabilities, [*ids[0, 1:].tolist(), 7], strict=True):
        row = torch.full((vocabulary,), (1 - probability) / (vocabulary - 1), dtype=torch.float64)
        row[following] = probability
        rows.append(row.log())
    return torch.stack(rows)[None]


def test_a_token_is_scored_where_it_is_predicted_and_not_one_place_off():
    # What positions 0 … 6 give to P, BOS, r1, r2, EOS, PAD and whatever comes after.
    logits = predicting([0.9, 0.8, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 0.3], IDS)
    scored = token_logps(logits, IDS, MASK)
    expected = [0.0, 0.0, math.log(1 / 2), math.log(1 / 4), math.log(1 / 8), 0.0]
    assert scored[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(scored.sum()) == pytest.approx(-6 * math.log(2), abs=1e-6)  # r2, EOS, PAD would be −9 ln 2


def test_the_log_softmax_is_float32_whatever_the_models_dtype():
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 8).bfloat16() * 9
    ids, mask = IDS.expand(2, -1), MASK.expand(2, -1)
    scored = token_logps(logits, ids, mask)
    assert scored.dtype == torch.float32
    exact = logits.double().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored[mask[:, 1:]].double(), exact[mask[:, 1:]], rtol=1e-6, atol=1e-6)


def test_only_the_logits_that_predict_scored_tokens_have_a_gradient():
    logits = torch.randn(1, 7, 8, requires_grad=True)
    token_logps(logits, IDS, MASK).sum().backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, False, True, True, True, False, False]


def test_a_row_without_scored_tokens_scores_zero():
    logits = torch.randn(1, 7, 8, requires_grad=True)
    scored = token_logps(logits, IDS, torch.zeros_like(MASK))
    assert scored.tolist() == [[0.0] * 6]


def test_the_sum_of_squares_is_how_likely_two_draws_are_to_be_the_same():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    expected = [math.log(0.25 + 0.0625 + 0.0625), math.log(1 / 3)]
    assert log_sum_squares(probabilities.log()).tolist() == pytest.approx(expected, abs=1e-6)
    certain = torch.tensor([[1000.0, 0.0, -1000.0]], dtype=torch.bfloat16, requires_grad=True)
    found = log_sum_squares(certain)
    assert (found.tolist(), found.dtype, found.requires_grad) == ([0.0], torch.float32, False)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), st.floats(0, 1))
def test_a_token_beyond_the_shorter_sides_length_counts_alpha(lengths, alpha):
    weights = ld_weights([length for pair in lengths for length in pair], alpha).tolist()
    expected = []
    for chosen, rejected in lengths:
        for length in (chosen, rejected):
            expected += [1.0 if place < min(chosen, rejected) else alpha for place in range(length)]
    assert weights == expected
