import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.models.forward import Forward
from engine.models.layouts import LAYOUTS, lay_out, size
from engine.models.passes import Passes
from engine.preferences.pairs import TokenRow


def pair(prompt, *responses):
    rows = [np.array([7] * prompt + [side] * length, dtype=np.int32) for side, length in enumerate(responses)]
    return tuple(TokenRow(row, np.arange(len(row)) >= prompt) for row in rows)


groups = st.dictionaries(
    st.integers(0, 99), st.builds(pair, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), max_size=12
)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(groups=groups, budget=st.integers(1, 60))
def test_no_micro_batch_takes_up_more_than_the_budget_but_a_group_that_does_so_alone(layout, groups, budget):
    import torch

    parts = Passes(Forward(layout, "fused"), budget, 0).split(groups)
    assert sorted(key for part in parts for key in part) == sorted(groups)
    for part in parts:
        if layout == "single":
            tokens = sum(len(row) for key in part for row in groups[key])
        else:
            tokens = lay_out([groups[key] for key in part], layout, 0, torch.device("cpu")).input_ids.numel()
        assert tokens <= budget or (len(part) == 1 and tokens == size(groups[part[0]], layout))


def test_packed_rows_hold_more_pairs_under_the_same_budget_than_padded_ones():
    pairs = dict(enumerate([pair(6, 9, 2), pair(2, 3, 3), pair(1, 2, 2), pair(1, 1, 1)]))
    layouts = ("packed", "shared", "padded")
    counts = {layout: len(Passes(Forward(layout, "fused"), 34, 0).split(pairs)) for layout in layouts}
    assert counts == {"packed": 1, "shared": 2, "padded": 2}


@given(st.sampled_from(LAYOUTS), st.sampled_from(["fused", "module", "model"]), st.integers(1), st.integers(0, 2**31))
def test_what_a_checkpoint_keeps_is_taken_again_as_long_as_the_same_is_asked_for(layout, head, budget, pad_id):
    passes = Passes(Forward(layout, head), budget, pad_id)
    kept = json.loads(json.dumps(passes.as_settled({"layout": "auto"})))
    assert Passes.settled(kept, {"layout": "auto"}) == passes
    assert Passes.settled(kept, {"layout": "padded"}) is None


numbers = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
names = st.sampled_from(["asked", "forward", "layout", "head", "budget", "pad_id", "other"])
contents = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@given(contents)
def test_what_is_nothing_of_the_kind_is_not_there(content):
    assert Passes.settled(content, {}) is None


WRONG = [{"budget": "77"}, {"budget": None}, {"budget": True}, {"pad_id": 0.5}]


@pytest.mark.parametrize("wrong", [*WRONG, {"forward": {"layout": "pakced", "head": "fused"}}])
def test_settled_passes_are_taken_whole_or_not_at_all(wrong):
    passes = Passes(Forward("packed", "fused"), 77, 0)
    kept = passes.as_settled({})
    assert Passes.settled(kept, {}) == passes
    assert Passes.settled(kept | wrong, {}) is None
