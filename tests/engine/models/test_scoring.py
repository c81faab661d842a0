import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import NumericsError
from engine.models.forward import PLAIN, Forward
from engine.models.passes import Passes
from engine.models.scoring import PairScores, policy_logps, score_pairs

PAIRS = 7
WAYS = [PLAIN, *(Forward(layout, "fused") for layout in ("padded", "shared", "packed"))]


def passes(budget=60, pad_id=0, way=WAYS[-1]):
    return Passes(way, budget, pad_id)


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama()


@pytest.fixture(scope="module")
def pairs(make_pairs):
    return make_pairs(PAIRS)


@pytest.fixture(scope="module")
def plainly(llama, pairs):
    """Each side alone, without padding, straight from the definition: per-token lists, chosen then rejected."""

    @torch.no_grad()
    def score(row):
        ids = torch.from_numpy(row.input_ids).long()
        logps = llama(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        return [float(logps[at - 1, ids[at]]) for at in range(1, len(ids)) if row.label_mask[at]]

    return [(score(pair.chosen), score(pair.rejected)) for pair in pairs]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_scores_are_those_of_the_definition(llama, pairs, plainly, way):
    for score, (chosen, rejected) in zip(score_pairs(llama, pairs, passes(way=way)), plainly, strict=True):
        assert score.chosen_token_logps == pytest.approx(chosen, abs=1e-5)
        assert score.rejected_token_logps == pytest.approx(rejected, abs=1e-5)
        assert score.chosen_logps == pytest.approx(math.fsum(score.chosen_token_logps), abs=1e-9)
        assert score.rejected_logps == pytest.approx(math.fsum(score.rejected_token_logps), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    budget=st.integers(1, 300),
    order=st.permutations(range(PAIRS)),
    pad_id=st.sampled_from([0, 2, 49]),
    way=st.sampled_from(WAYS),
)
def test_neither_budget_nor_order_nor_pad_id_nor_layout_changes_a_score(
    llama, pairs, plainly, budget, order, pad_id, way
):
    scores = score_pairs(llama, [pairs[row] for row in order], passes(budget, pad_id, way))
    for row, score in zip(order, scores, strict=True):
        sums = [math.fsum(side) for side in plainly[row]]
        assert [score.chosen_logps, score.rejected_logps] == pytest.approx(sums, rel=1e-5, abs=1e-5)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(PAIRS)), cut=st.integers(1, PAIRS - 1))
def test_parts_give_the_gradient_of_the_whole(llama, pairs, order, cut):
    ref = torch.zeros(PAIRS, 2, dtype=torch.float64)

    def gradient(*parts):
        llama.zero_grad()
        for part in parts:
            logps = policy_logps(llama, [pairs[row] for row in part], ref[: len(part)], passes(pad_id=2))
            (logps.policy_chosen - 2 * logps.policy_rejected).sum().backward()
        return torch.cat([value.grad.flatten() for value in llama.parameters()])

    whole, parted = gradient(range(PAIRS)), gradient(order[:cut], order[cut:])
    assert float((whole - parted).norm() / whole.norm()) < 1e-5


def test_the_policys_logps_are_the_scores_and_the_reference_stays_beside_its_pair(llama, pairs):
    scores = score_pairs(llama, pairs, passes(30))
    ref = torch.arange(2 * PAIRS, dtype=torch.float64).reshape(PAIRS, 2)
    logps = policy_logps(llama, pairs, ref, passes())
    assert logps.policy_chosen.dtype == torch.float64
    assert logps.policy_chosen.tolist() == pytest.approx([score.chosen_logps for score in scores], abs=1e-4)
    assert logps.policy_rejected.tolist() == pytest.approx([score.rejected_logps for score in scores], abs=1e-4)
    assert torch.stack([logps.ref_chosen, logps.ref_rejected], 1).equal(ref)
    assert logps.chosen_tokens.tolist() == [pair.chosen.scored_tokens for pair in pairs]
    assert logps.rejected_tokens.tolist() == [pair.rejected.scored_tokens for pair in pairs]
    assert logps.whole_chosen is None
    assert logps.weights is None


def test_the_tail_of_the_longer_side_counts_alpha():
    scores = PairScores([-1.0, -2.0, -4.0], [-8.0], -7.0, -8.0)
    assert scores.sums() == (-7.0, -8.0)
    assert scores.sums(0.5) == (-4.0, -8.0)
    assert scores.sums(0.0) == (-1.0, -8.0)
    assert scores.sums(1.0) == scores.sums()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_under_ld_dpo_the_policys_sums_are_weighted_and_the_whole_ones_stay_beside_them(llama, pairs, way):
    ref = torch.zeros(PAIRS, 2, dtype=torch.float64)
    logps = policy_logps(llama, pairs, ref, passes(way=way), whole_ref=ref - 1.0, ld_alpha=0.3)
    scores = score_pairs(llama, pairs, passes())
    for side, place in ((logps.policy_chosen, 0), (logps.policy_rejected, 1)):
        assert side.tolist() == pytest.approx([score.sums(0.3)[place] for score in scores], abs=1e-4)
    assert logps.whole_chosen.tolist() == pytest.approx([score.chosen_logps for score in scores], abs=1e-4)
    assert logps.plain_rejected.tolist() == pytest.approx([score.rejected_logps for score in scores], abs=1e-4)
    assert (logps.ref_chosen.tolist(), logps.plain_ref_chosen.tolist()) == ([0.0] * PAIRS, [-1.0] * PAIRS)
    assert float((logps.whole_chosen - logps.policy_chosen).detach().abs().max()) > 1
    assert logps.policy_chosen.requires_grad and logps.whole_chosen.requires_grad


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_pairs_weight_is_the_product_of_what_both_sides_are_worth_to_the_policy(llama, pairs, way):
    ref = torch.zeros(PAIRS, 2, dtype=torch.float64)
    weights = policy_logps(llama, pairs, ref, passes(way=way), use_weighting=True).weights

    @torch.no_grad()
    def worth(row):
        logps = llama(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0].double().log_softmax(-1)
        places = [at for at in range(1, len(row)) if row.label_mask[at]]
        aligned = [float(logps[at - 1, row.input_ids[at]] - (2 * logps[at - 1]).logsumexp(-1)) for at in places]
        return math.exp(math.fsum(aligned) / len(aligned))

    assert weights.tolist() == pytest.approx([worth(pair.chosen) * worth(pair.rejected) for pair in pairs], rel=1e-5)
    assert weights.dtype == torch.float64
    assert not weights.requires_grad


def test_the_models_mode_is_set_to_eval_and_given_back(make_llama, pairs):
    with_dropout = make_llama(attention_dropout=0.5).train()
    scores = [score_pairs(with_dropout, pairs, passes()) for _ in range(2)]
    assert scores[0] == scores[1]
    assert with_dropout.training


def test_a_bfloat16_model_is_scored_in_float32(make_llama, pairs):
    for way in WAYS:
        [score] = score_pairs(make_llama().bfloat16(), pairs[:1], passes(way=way))
        rounded = torch.tensor(score.chosen_token_logps).bfloat16().float().tolist()
        assert score.chosen_token_logps != rounded


def test_progress_counts_the_pairs(llama, pairs):
    told = []
    score_pairs(llama, pairs, passes(), progress=told.append)
    parts = passes().split({row: pair.rows for row, pair in enumerate(pairs)})
    assert len(parts) > 1
    assert told == list(accumulate(map(len, parts)))
    assert score_pairs(llama, [], passes(), progress=told.append) == []


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_score_that_is_no_number_names_its_pair(make_llama, make_row, pairs, way):
    broken = make_llama()
    with torch.no_grad():
        broken.get_input_embeddings().weight[40] = math.nan
    ill = pairs[0].__class__("ill", "s", make_row([5], [40, 2]), make_row([5], [6, 2]))
    well = pairs[0].__class__("well", "s", make_row([5], [7, 2]), make_row([5], [6, 2]))
    with pytest.raises(NumericsError, match="a score is not finite") as caught:
        score_pairs(broken, [well, ill], passes(way=way))
    assert caught.value.where == "pairs ill"
