import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.attention import PACKED, CannotPack, Spans, packed_attention
from engine.models.forward import Forward, row_logps
from engine.models.generation import GenerationSettings, generate

CPU = torch.device("cpu")

# Shared prefixes of any length, and branches that may be empty; no group is empty.
groups = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.integers(0, 5), min_size=1, max_size=3)).filter(
        lambda g: g[0] + max(g[1])
    ),
    min_size=1,
    max_size=4,
)


def dense(spans):
    """(T, T) bool, from the definition: token by token, who is of the same group and before, and on whose branch."""
    tokens = [
        (number, branch)
        for number, (shared, branches) in enumerate(spans.groups)
        for branch, length in enumerate([shared, *branches])
        for _ in range(length)
    ]
    return torch.tensor(
        [
            [key <= query and a[0] == b[0] and b[1] in (0, a[1]) for key, b in enumerate(tokens)]
            for query, a in enumerate(tokens)
        ]
    )


def heads(count, tokens, seed=0):
    torch.manual_seed(seed)
    return torch.randn(1, count, tokens, 16, requires_grad=True)


class Module(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def attended(spans, query, key, value, **given):
    return packed_attention(Module(), query, key, value, None, spans=spans, **given)[0].transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(groups)
def test_a_token_sees_its_groups_prefix_and_its_own_branch_up_to_itself(made):
    spans = Spans.of(made, CPU)
    index = torch.arange(spans.length)
    assert spans.length == sum(shared + sum(branches) for shared, branches in made)
    assert spans.sees(index[:, None], index[None, :]).equal(dense(spans))
    assert spans.longest == max(shared + max(branches) for shared, branches in made)


@settings(max_examples=25, deadline=None)
@given(groups, st.sampled_from([None, 0.5]))
def test_branch_by_branch_the_output_and_its_gradients_are_those_under_a_dense_mask(made, scale):
    spans = Spans.of(made, CPU)
    query, key, value = heads(4, spans.length), heads(2, spans.length, 1), heads(2, spans.length, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=dense(spans), scale=scale, enable_gqa=True
    )
    found = attended(spans, query, key, value, scaling=scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    above = torch.randn_like(expected)
    slopes = [torch.autograd.grad(each, (query, key, value), above) for each in (found, expected)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("made", [[(3, [2, 4])], [(90, [40, 0]), (2, [5, 60]), (7, [0])]], ids=["one block", "several"])
def test_the_block_mask_says_the_same_as_the_branches(made):
    from torch.nn.attention.flex_attention import flex_attention

    spans = Spans.of(made, CPU)
    query, key, value = (heads(count, spans.length, count).detach() for count in (4, 2, 2))
    blocks = flex_attention(query, key, value, block_mask=spans.block_mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attended(spans, query, key, value, scaling=0.3), blocks, rtol=1e-5, atol=1e-5)


def test_padding_at_the_end_of_a_row_is_a_group_of_its_own():
    spans = Spans.of([(2, [1, 1])], CPU)
    padded = Spans(
        spans.groups, 6, *(torch.cat([each, each.new_tensor(tail)]) for each, tail in
                           ((spans.group_of, [-1, -1]), (spans.branch_of, [0, 0])))
    )  # fmt: skip
    index = torch.arange(6)
    seen = padded.sees(index[:, None], index[None, :])
    assert seen[:4, :4].equal(dense(spans))
    assert not seen[:4, 4:].any() and not seen[4:, :4].any() and seen.diagonal().all()


@pytest.mark.parametrize(
    "given, reason",
    [({"sliding_window": 3}, "looks back 3 tokens only, and a row has 4"), ({"softcap": 5.0}, "`softcap`"),
     ({"s_aux": torch.ones(2)}, "`s_aux`"), ({"position_bias": torch.ones(2)}, "`position_bias`")],
    ids=["window", "softcap", "sinks", "bias"],
)  # fmt: skip
def test_what_it_does_not_compute_is_refused_and_not_left_out(given, reason):
    spans = Spans.of([(3, [1])], CPU)
    with pytest.raises(CannotPack, match=reason):
        attended(spans, heads(4, 4), heads(2, 4), heads(2, 4), **given)
    attended(spans, heads(4, 4), heads(2, 4), heads(2, 4), sliding_window=4, softcap=None)


def test_without_spans_it_is_the_attention_of_transformers(make_llama):
    model, ids = make_llama(), torch.tensor([[5, 6, 7, 8], [0, 0, 9, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        before = [model(ids).logits, model(ids, attention_mask=mask).logits]
        model.set_attn_implementation(PACKED)
        after = [model(ids).logits, model(ids, attention_mask=mask).logits]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["llama", "mistral, short window", "gpt2", "cohere"])
def test_a_model_switched_to_packed_rows_generates_what_it_did_before(make_model, name):
    model = make_model(name)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    how = GenerationSettings(max_new_tokens=8, temperature=1.0, top_p=0.9)

    def said():
        made = generate(model, prompts, settings=how, seed=1, batch_size=2, pad_id=0, eos_ids=[2], device=CPU)
        return [each.ids for each in made]

    before = said()
    model.set_attn_implementation(PACKED)
    assert said() == before


def test_a_model_saved_after_packed_rows_loads_where_nobody_knows_of_them(make_llama, make_pairs, saved):
    model = make_llama()
    row_logps(model, [pair.rows for pair in make_pairs(2)], Forward("packed", "fused"), 0)
    assert model.config._attn_implementation == PACKED
    folder = saved(model)
    for file in folder.glob("*.json"):
        assert PACKED not in file.read_text("utf-8")
    assert json.loads((folder / "config.json").read_text("utf-8")).get("attn_implementation") is None
    assert type(model).from_pretrained(folder).config._attn_implementation == "sdpa"
