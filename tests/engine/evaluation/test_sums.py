import pytest
import torch

from engine.evaluation.sums import Sums, pair_logps
from engine.models.scoring import PairScores
from engine.preferences.pairs import TokenPair


@pytest.fixture
def pairs(make_row):
    """3 and 1 scored tokens against 2."""
    return [TokenPair(str(count), "s", make_row([1], [5] * count), make_row([1], [6, 2])) for count in (3, 1)]


@pytest.fixture
def scores():
    tokens = [([-3.0, -3.0, -2.0], [-5.0, -6.0]), ([-9.0], [-1.0, -2.0])]
    return [PairScores(chosen, rejected, sum(chosen), sum(rejected)) for chosen, rejected in tokens]


def test_plain_sums_are_all_there_is_where_nothing_weighs_tokens(pairs, scores):
    found = Sums.of(scores)
    assert found.of_the_loss is found.plain and found.weighted is None
    ref = torch.tensor([[-10.0, -10.0], [-6.0, -4.0]], dtype=torch.float64)
    logps = pair_logps(pairs, found, Sums(ref))
    assert (logps.policy_chosen.tolist(), logps.ref_rejected.tolist()) == ([-8.0, -9.0], [-10.0, -4.0])
    assert (logps.chosen_tokens.tolist(), logps.rejected_tokens.tolist()) == ([3, 1], [2, 2])
    assert (logps.whole_chosen, logps.weights) == (None, None)
    assert pair_logps(pairs, found, None).ref_chosen.tolist() == [0.0, 0.0]


def test_under_ld_dpo_a_loss_is_of_the_weighted_sums_and_the_plain_ones_stand_beside_them(pairs, scores):
    ref = Sums(*(torch.tensor(each, dtype=torch.float64) for each in ([[-4.0, -5.0]] * 2, [[-2.0, -3.0]] * 2)))
    logps = pair_logps(pairs, Sums.of(scores, 0.5), ref)
    assert (logps.policy_chosen.tolist(), logps.policy_rejected.tolist()) == ([-7.0, -9.0], [-11.0, -2.0])
    assert (logps.plain_chosen.tolist(), logps.plain_rejected.tolist()) == ([-8.0, -9.0], [-11.0, -3.0])
    assert (logps.ref_chosen.tolist(), logps.plain_ref_chosen.tolist()) == ([-2.0] * 2, [-4.0] * 2)
    assert (logps.ref_rejected.tolist(), logps.plain_ref_rejected.tolist()) == ([-3.0] * 2, [-5.0] * 2)


def test_of_no_pairs_there_are_no_sums():
    assert Sums.of([], 0.5).of_the_loss.shape == (0, 2)
