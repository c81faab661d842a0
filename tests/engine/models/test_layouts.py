import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.layouts import LAYOUTS, lay_out, size
from engine.preferences.pairs import TokenRow

CPU, PAD = torch.device("cpu"), 0


def token_row(ids, scored):
    return TokenRow(np.array(ids, dtype=np.int32), np.array(scored, dtype=bool))


# x x | a b and x x | a c d: the shared part is x x a, the rests are b and c d.
PAIR = (token_row([8, 9, 1, 2], [0, 0, 1, 1]), token_row([8, 9, 1, 3, 4], [0, 0, 1, 1, 1]))
LONE = (token_row([7, 6], [0, 1]),)


@st.composite
def groups(draw):
    """One to four rows that begin alike, ids few enough that more than the prompt may be alike; marks anywhere."""
    prompt = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        ids = prompt + draw(st.lists(st.integers(0, 3), max_size=5))
        rows.append(token_row(ids, draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))))
    return tuple(rows)


batches = st.lists(groups(), min_size=1, max_size=4)


def seen(batch):
    """(R, T, T) bool: which index of its row a token attends to, whatever form the attention comes in."""
    height, width = batch.input_ids.shape
    if batch.attention is None:
        return torch.ones(width, width, dtype=torch.bool).tril().expand(height, -1, -1)
    if isinstance(batch.attention, torch.Tensor):
        return batch.attention[:, 0]
    index = torch.arange(width)
    return batch.attention.sees(index[:, None], index[None, :])[None]


def contexts(batch):
    """What predicts each scored token: the ids that its place attends to, in the order of their positions."""
    ids, positions, mask = batch.input_ids.flatten(), batch.position_ids.flatten(), seen(batch)
    width = batch.input_ids.shape[1]
    found = []
    for place in batch.places.tolist():
        row, at = divmod(place, width)
        visible = (row * width + mask[row, at].nonzero().flatten()).tolist()
        assert positions[visible].tolist() == list(range(len(visible)))  # every position once, and none is missing
        found.append(ids[visible].tolist())
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(batch=batches)
def test_a_scored_token_is_predicted_from_what_precedes_it_in_its_own_row_and_from_nothing_else(layout, batch):
    laid = lay_out(batch, layout, PAD, CPU)
    rows = [row for group in batch for row in group]
    scored = [(row, at) for row in rows for at in range(1, len(row)) if row.label_mask[at]]
    assert laid.counts == [sum(bool(mark) for mark in row.label_mask[1:]) for row in rows]
    assert laid.targets.tolist() == [int(row.input_ids[at]) for row, at in scored]
    assert contexts(laid) == [row.input_ids[:at].tolist() for row, at in scored]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(batch=batches)
def test_a_group_takes_up_the_tokens_that_are_said_and_every_token_sees_itself(layout, batch):
    alone = [lay_out([group], layout, PAD, CPU) for group in batch]
    assert [laid.input_ids.numel() for laid in alone] == [size(group, layout) for group in batch]
    together = lay_out(batch, layout, PAD, CPU)
    sizes = [laid.input_ids.shape[1] for laid in alone]
    assert together.input_ids.shape[1] == (sum(sizes) if layout == "packed" else max(sizes))
    assert seen(together).diagonal(dim1=1, dim2=2).all()  # a token that sees nothing is NaN under a softmax


def test_a_shared_row_is_the_common_beginning_and_then_each_rest_with_positions_that_go_on():
    laid = lay_out([PAIR, LONE], "shared", PAD, CPU)
    assert laid.input_ids.tolist() == [[8, 9, 1, 2, 3, 4], [7, 6, PAD, PAD, PAD, PAD]]
    assert laid.position_ids.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 0, 0, 0, 0]]
    assert laid.places.tolist() == [1, 2, 1, 2, 4, 6]  # both sides' first token is predicted in one place
    assert laid.targets.tolist() == [1, 2, 1, 3, 4, 6]
    assert laid.counts == [2, 3, 1]
    assert seen(laid)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1],
    ]  # fmt: skip


def test_a_packed_row_is_the_groups_one_after_the_other_without_padding():
    laid = lay_out([LONE, PAIR], "packed", PAD, CPU)
    assert laid.input_ids.tolist() == [[7, 6, 8, 9, 1, 2, 3, 4]]
    assert laid.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 3, 4]]
    assert laid.places.tolist() == [0, 3, 4, 3, 4, 6]
    assert laid.attention.groups == [(2, [0]), (3, [1, 2])]


def test_padded_rows_are_one_a_response_and_their_positions_go_on_so_that_no_mask_is_made():
    laid = lay_out([PAIR, LONE], "padded", PAD, CPU)
    assert laid.input_ids.tolist() == [[8, 9, 1, 2, PAD], [8, 9, 1, 3, 4], [7, 6, PAD, PAD, PAD]]
    assert laid.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert laid.attention is None


def test_padded_rows_reach_the_attention_without_a_mask(make_model, monkeypatch):
    from transformers.integrations import sdpa_attention

    from engine.models.forward import Forward, row_logps

    masks, attend = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        sdpa_attention.torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *given, attn_mask=None, **named: masks.append(attn_mask) or attend(*given, attn_mask=attn_mask, **named),
    )
    row_logps(make_model("llama"), [PAIR, LONE], Forward("padded", "fused"), PAD)
    assert masks == [None, None]  # one a layer: a mask of the rows' width squared is slow
