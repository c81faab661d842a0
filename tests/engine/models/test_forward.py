"""The layouts agree: the same logps and gradients whatever the layout, the head, the micro-batches and their order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.models.attention import CannotPack
from engine.models.forward import PLAIN, Forward, RowLogps, head_of, row_logps, takes_fused_head
from engine.models.lora import trainable_parameters
from engine.models.passes import Passes
from engine.preferences.pairs import TokenRow

WAYS = [Forward(layout, head) for layout in ("packed", "shared", "padded") for head in ("fused", "module")]
UNPACKED = [way for way in WAYS if way.layout != "packed"]
PADDED = [way for way in WAYS if way.layout == "padded"]
SUITABLE = {
    "llama": WAYS, "llama, tied": WAYS, "qwen2": WAYS, "qwen3": WAYS, "mistral": WAYS,
    "mistral, short window": PADDED, "gemma": WAYS, "gemma2": UNPACKED, "gpt2": WAYS, "granite": WAYS,
    "cohere": WAYS, "phi": WAYS, "gptj": UNPACKED,
}  # fmt: skip


def token_row(row_ids, scored):
    return TokenRow(np.array(row_ids, dtype=np.int32), np.array(scored, dtype=bool))


ids = st.lists(st.integers(0, 96), min_size=1, max_size=8)


@st.composite
def pairs(draw):
    """Two rows with one prompt: responses of every relation, all of them marked as scored, or tokens here and there."""
    prompt, chosen = draw(ids), draw(ids)
    relation = draw(st.sampled_from(["different", "longer", "shorter", "beginning alike", "the same"]))
    begins = {
        "different": 0,
        "longer": len(chosen),
        "shorter": (len(chosen) + 1) // 2,
        "beginning alike": len(chosen) // 2,
    }
    rejected = chosen[: begins.get(relation, len(chosen))]
    if relation in ("different", "longer", "beginning alike"):
        rejected = rejected + draw(ids)
    rows = []
    for response in (chosen, rejected):
        whole = [False] * len(prompt) + [True] * len(response)
        holes = st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))
        rows.append(token_row(prompt + response, draw(st.one_of(st.just(whole), holes))))
    return tuple(rows)


@st.composite
def steps(draw):
    """Groups by key in some order, and a budget of tokens."""
    made = dict(enumerate(draw(st.lists(pairs(), min_size=1, max_size=5))))
    return {key: made[key] for key in draw(st.permutations(list(made)))}, draw(st.integers(1, 120))


def response(prompt, *sides):
    return tuple(token_row([*prompt, *side], [False] * len(prompt) + [True] * len(side)) for side in sides)


EDGES = dict(
    enumerate(
        [
            response([5], [6], [7]),  # a prompt and answers of one token
            response([8, 9, 2], [3, 4, 2], [3, 4, 2]),  # equal sides
            response([1], [3, 4, 5, 6, 2], [3, 4, 5]),  # one side the other's beginning
            response([11, 12], [13, 2], [13, 14, 15, 16, 17, 18, 2]),  # answers that begin alike
            tuple(token_row([20, 21, tail, 22, 0, 2], [True, False, True, False, False, True]) for tail in (23, 24)),
        ]
    )
)


def scored(model, groups, parts, way):
    """(token logps, sums) of every pair's sides by key, and the gradient of a sum in which every row has its weight."""
    found, gradient = {}, torch.zeros(())
    for part in parts:
        logps = row_logps(model, [groups[key] for key in part], way, pad_id=0)
        sums, tokens = logps.sums(), logps.by_row()
        for place, key in enumerate(part):
            here = slice(2 * place, 2 * place + 2)
            found[key] = tokens[here], sums[here].tolist()
        # Unequal, so that a row taken for another is seen, and of one sign, lest gradients cancel to rounding.
        weights = sums.new_tensor([weight for key in part for weight in (1 + 0.1 * key, 0.37 + 0.3 * key)])
        slopes = torch.autograd.grad(sums @ weights, list(trainable_parameters(model).values()))
        gradient = gradient + torch.cat([slope.flatten() for slope in slopes])
    return found, gradient


def assert_agree(model, step, ways):
    groups, budget = step
    exact, gradient = scored(model, groups, [[key] for key in sorted(groups)], PLAIN)
    for way in ways:
        parts = Passes(way, budget, 0).split(groups)
        found, slope = scored(model, groups, parts, way)
        for key, (tokens, sums) in exact.items():
            assert sums == pytest.approx(found[key][1], rel=1e-5, abs=1e-5), way
            for side, other in zip(tokens, found[key][0], strict=True):
                assert side == pytest.approx(other, rel=1e-5, abs=1e-5), way
        assert float((slope - gradient).norm()) <= 1e-5 * (float(gradient.norm()) + 0.1), way


@pytest.fixture(scope="module")
def models(make_model, adapt):
    """Adapted models by their names in the zoo, each made once."""
    made = {}
    return lambda name: made[name] if name in made else made.setdefault(name, adapt(make_model(name)))


def hold(model, ways, examples):
    """Holds the ways against one padded pair at a time, whatever the pairs, their order and the budget."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps())
    @example((EDGES, 30))
    def agree(step):
        assert_agree(model, step, ways)

    agree()


@pytest.mark.parametrize("name", SUITABLE)
def test_every_layout_that_a_model_can_take_gives_the_logps_and_gradients_of_one_padded_pair_at_a_time(models, name):
    hold(models(name), [way for way in SUITABLE[name] if way.head == "fused"], examples=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITABLE)
def test_many_more_pairs_orders_and_budgets_give_the_same(models, name):
    hold(models(name), SUITABLE[name], examples=60)


def test_a_head_under_an_adapter_is_called_as_a_module_and_agrees(make_model, adapt):
    model = adapt(make_model("llama"), ["q_proj", "down_proj", "lm_head"])
    assert not takes_fused_head(model.get_base_model())
    hold(model, [way for way in WAYS if way.head == "module"], examples=2)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "phi", "gemma2"])
def test_the_gradient_of_a_head_that_is_trained_itself_agrees(make_model, name):
    model = make_model(name)
    hold(model, [way for way in SUITABLE[name] if way.head == "fused"], examples=2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
def test_a_packed_model_still_takes_the_other_layouts(make_model, adapt, name):
    model = adapt(make_model(name))
    model.get_base_model().set_attn_implementation("prefix_packed")
    hold(model, [*PADDED, PLAIN], examples=2)


PAIR = (token_row([5, 6, 7, 8, 9], [False, False, True, True, True]), token_row([5, 6, 3], [False, False, True]))


@pytest.mark.parametrize("name", ["mistral, short window", "gemma2"])
def test_a_packed_row_is_refused_where_the_attention_computes_something_else(models, name):
    with pytest.raises(CannotPack, match=r"looks back 3 tokens only|softcap"):
        row_logps(models(name), [PAIR], Forward("packed", "fused"), pad_id=0)
    models(name).get_base_model().set_attn_implementation("eager")


def test_a_window_that_is_just_as_long_as_the_longest_row_cuts_nothing(make_model, adapt):
    model = adapt(make_model("mistral", sliding_window=5))
    step = {0: PAIR, 1: PAIR[::-1]}, 100
    assert_agree(model, step, WAYS)


@pytest.mark.parametrize(
    "name, expected",
    [("llama", (1.0, None, False)), ("granite", (0.25, None, False)), ("cohere", (0.25, None, False)),
     ("gemma2", (1.0, 5.0, False)), ("phi", (1.0, None, True))],
)  # fmt: skip
def test_the_head_is_what_the_models_configuration_says(models, name, expected):
    head = head_of(models(name).get_base_model())
    assert (head.scale, head.softcap, head.bias is not None) == expected


def test_only_a_plain_linear_head_is_computed_without_its_module(make_model):
    model = make_model("llama")
    assert takes_fused_head(model)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(97, 32, dtype=torch.int8), requires_grad=False)
    assert not takes_fused_head(model)
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 97))
    assert not takes_fused_head(model)


def test_sums_are_float64_of_each_rows_own_tokens_and_lose_nothing_beside_a_large_value():
    tokens = torch.cat([torch.tensor([-4096.0]), torch.full((20_000,), -1e-4), torch.tensor([-1.0, -2.0])])
    logps = RowLogps(tokens, [20_001, 0, 2])
    assert logps.sums().dtype == torch.float64
    assert logps.sums().tolist() == pytest.approx([-4098.0, 0.0, -3.0], abs=1e-5)
    assert [len(row) for row in logps.by_row()] == [20_001, 0, 2]
    assert logps.by_row()[2] == [-1.0, -2.0]


@pytest.mark.parametrize("way", [PLAIN, *WAYS], ids=str)
def test_a_response_token_is_scored_where_it_is_predicted_and_not_one_place_off(make_llama, way):
    # P P BOS r1 r2 EOS: scored are r1, r2 and EOS; one place off it would be r2, EOS and what comes after.
    model, row = make_llama(), token_row([5, 6, 1, 3, 4, 2], [False] * 3 + [True] * 3)
    with torch.no_grad():
        [found] = row_logps(model, [[row]], way, pad_id=0).by_row()
        predicted = model(input_ids=torch.tensor([[5, 6, 1, 3, 4, 2]])).logits[0].double().log_softmax(-1)
    assert found == pytest.approx([float(predicted[at - 1, [5, 6, 1, 3, 4, 2][at]]) for at in (3, 4, 5)], abs=1e-5)


def test_logps_are_float32_of_logits_in_half_precision(make_llama):
    for way in (PLAIN, *WAYS):
        logps = row_logps(make_llama().bfloat16(), [PAIR], way, pad_id=0).tokens
        assert logps.dtype == torch.float32
        assert not logps.equal(logps.bfloat16().float())
        assert all(math.isfinite(value) for value in logps.tolist())


@torch.no_grad()
def squares_of(model, row):
    """log Σ p² at the scored tokens of a row, straight from the definition."""
    logps = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0].double().log_softmax(-1)
    before = np.flatnonzero(row.label_mask[1:])
    return (2 * logps[before]).logsumexp(-1)


@pytest.mark.parametrize("way", [PLAIN, Forward("padded", "model"), *WAYS], ids=str)
def test_the_squares_are_those_of_the_definition_whatever_the_way_and_come_beside_the_same_logps(models, way):
    model, groups = models("llama"), list(EDGES.values())
    asked, unasked = (row_logps(model, groups, way, pad_id=0, squares=squares) for squares in (True, False))
    expected = torch.cat([squares_of(model, row) for group in groups for row in group])
    torch.testing.assert_close(asked.squares.double(), expected, rtol=1e-5, atol=1e-5)
    assert asked.tokens.equal(unasked.tokens)
    assert asked.counts == unasked.counts
    assert unasked.squares is None
    assert not asked.squares.requires_grad


def test_a_rows_likeness_is_the_mean_over_its_tokens_and_has_no_gradient():
    tokens = torch.tensor([-1.0, -3.0, -2.0], requires_grad=True)
    rows = RowLogps(tokens, [2, 0, 1], squares=torch.tensor([-0.5, -0.5, -1.5]))
    assert rows.likeness().tolist() == pytest.approx([math.exp(-1.5), 1.0, math.exp(-0.5)])
    assert rows.likeness().dtype == torch.float64
    assert not rows.likeness().requires_grad
    with pytest.raises(ValueError, match="without log Σ p²"):
        RowLogps(tokens, [2, 0, 1]).likeness()


def test_tokens_count_what_their_weights_say():
    tokens = torch.tensor([-1.0, -3.0, -2.0], requires_grad=True)
    sums = RowLogps(tokens, [2, 1]).sums(torch.tensor([1.0, 0.5, 0.25]))
    assert sums.tolist() == [-2.5, -0.5]
    sums.sum().backward()
    assert tokens.grad.tolist() == [1.0, 0.5, 0.25]
