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
def test_what_was_kept_is_read_again(tmp_path_factory, layout, head, budget, pad_id):
    path = tmp_path_factory.mktemp("passes") / "passes.json"
    passes = Passes(Forward(layout, head), budget, pad_id)
    passes.write(path, {"layout": "auto"})
    assert Passes.read(path, {"layout": "auto"}) == passes
    assert Passes.read(path, {"layout": "padded"}) is None


numbers = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
names = st.sampled_from(["forward", "layout", "head", "budget", "pad_id", "other"])
contents = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@given(contents)
def test_what_is_no_such_file_is_not_there(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("passes") / "passes.json"
    path.write_text(json.dumps(content), "utf-8")
    assert Passes.read(path, {}) is None


@pytest.mark.parametrize("wrong", [{"budget": "77"}, {"budget": None}, {"budget": True}, {"pad_id": 0.5}])
def test_what_is_no_budget_is_not_taken_for_one(tmp_path, wrong):
    kept = {"asked": {}, "forward": {"layout": "packed", "head": "fused"}, "budget": 77, "pad_id": 0}
    (tmp_path / "passes.json").write_text(json.dumps(kept))
    assert Passes.read(tmp_path / "passes.json", {}) == Passes(Forward("packed", "fused"), 77, 0)
    (tmp_path / "passes.json").write_text(json.dumps(kept | wrong))
    assert Passes.read(tmp_path / "passes.json", {}) is None
    (tmp_path / "passes.json").write_text(json.dumps(kept | {"forward": {"layout": "pakced", "head": "fused"}}))
    assert Passes.read(tmp_path / "passes.json", {}) is None


@pytest.mark.parametrize("content", [b"", b'{"forward": {"layout": "packed"', b"\xff"])
def test_a_file_that_was_cut_is_not_there(tmp_path, content):
    (tmp_path / "passes.json").write_bytes(content)
    assert Passes.read(tmp_path / "passes.json", {}) is None
    assert Passes.read(tmp_path / "none.json", {}) is None
