import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.padding import pad_rows
from engine.preferences.pairs import TokenRow

CPU = torch.device("cpu")


def row(ids: list[int], scored: list[bool]) -> TokenRow:
    return TokenRow(np.array(ids, dtype=np.int32), np.array(scored))


def test_the_rows_stay_in_order_and_the_marks_beside_their_ids(make_row):
    padded = pad_rows([make_row([5], [6, 2]), make_row([8, 8], [2]), make_row([5], [7, 7, 2])], 0, CPU)
    assert padded.input_ids.tolist() == [[5, 6, 2, 0], [8, 8, 2, 0], [5, 7, 7, 2]]
    assert padded.label_mask.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("pad_id", [0, 2], ids=["pad is unk", "pad is eos"])
def test_the_mask_comes_from_lengths_and_not_from_the_pad_id(pad_id):
    rows = [row([5, 0, 2, 0, 2], [False, False, True, True, True]), row([5, 2], [False, True])]
    padded = pad_rows(rows, pad_id, CPU)
    assert padded.label_mask.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]
    assert padded.input_ids[1].tolist() == [5, 2, pad_id, pad_id, pad_id]


rows_of_ids = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(rows_of_ids, st.integers(0, 9))
def test_every_id_is_where_it_was_and_the_rest_is_unscored_padding(rows, pad_id):
    padded = pad_rows([row(ids, [True] * len(ids)) for ids in rows], pad_id, CPU)
    assert padded.input_ids.shape == (len(rows), max(map(len, rows)))
    for place, ids in enumerate(rows):
        assert padded.input_ids[place, : len(ids)].tolist() == ids
        assert (padded.input_ids[place, len(ids) :] == pad_id).all()
        assert padded.label_mask[place].sum() == len(ids)
