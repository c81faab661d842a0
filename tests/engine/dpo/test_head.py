import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dpo import head as heads
from engine.dpo.head import Head, target_logps, target_logps_and_squares

WIDE, VOCABULARY = 12, 40


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of 64 tokens, the fewest there are."""
    monkeypatch.setattr(heads, "_CPU_ELEMENTS", 1)


def made(tokens, seed=0, scale=1.0, softcap=None, bias=False, dtype=torch.float32):
    """Hidden states, a head and targets under which logps are far from uniform."""
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, WIDE).to(dtype)
    weight, offset = torch.randn(VOCABULARY, WIDE).to(dtype), torch.randn(VOCABULARY).to(dtype) if bias else None
    return hidden, Head(weight, offset, scale, softcap), torch.randint(VOCABULARY, (tokens,))


def all_logps(hidden, head):
    """The definition, through all logits, in float64."""
    logits = hidden.double() @ head.weight.double().t()
    logits = logits if head.bias is None else logits + head.bias.double()
    logits = logits * head.scale
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(1)


def plainly(hidden, head, targets):
    return all_logps(hidden, head).gather(1, targets[:, None]).squeeze(1)


def gradients(way, hidden, head, targets, trained):
    """Logps, and the gradients of a weighted sum of them for the hidden states and what is trained of the head."""
    leaves = [each.clone().requires_grad_() for each in (hidden, head.weight, head.bias) if each is not None]
    asked = leaves if trained else leaves[:1]
    weight, *bias = leaves[1:] if trained else [each.detach() for each in leaves[1:]]
    logps = way(leaves[0], Head(weight, *(bias or [None]), head.scale, head.softcap), targets)
    above = torch.linspace(-1, 2, len(targets), dtype=logps.dtype)
    return logps.detach(), torch.autograd.grad(logps @ above, asked)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 2, 63, 64, 65, 128, 130]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    bias=st.booleans(),
)
def test_logps_and_gradients_are_those_through_all_logits(trained, tokens, seed, scale, softcap, bias):
    given = made(tokens, seed, scale, softcap, bias)
    logps, found = gradients(target_logps, *given, trained)
    exact, expected = gradients(plainly, *given, trained)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), exact, rtol=1e-5, atol=1e-5)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-6


def test_where_a_target_is_nearly_certain_its_gradient_keeps_its_digits():
    _, head, targets = made(200)
    hidden = 1.2 * head.weight[targets]
    logps, (ours,) = gradients(target_logps, hidden, head, targets, trained=False)
    _, (exact,) = gradients(plainly, hidden, head, targets, trained=False)
    rest = -torch.expm1(logps)
    rows = (rest > 1e-4) & (rest < 1e-2)
    assert rows.sum() > 20
    apart = (ours - exact)[rows].norm(dim=1) / exact[rows].norm(dim=1)
    assert float(apart.max()) < 2e-4


def test_a_tied_weight_gets_the_gradient_of_both_its_uses():
    hidden, head, targets = made(70)
    embedding = head.weight.clone().requires_grad_()
    ids = torch.randint(VOCABULARY, (70,))

    def both(way):
        return torch.autograd.grad(way(hidden + embedding[ids], Head(embedding), targets).sum(), embedding)[0]

    ours, theirs = both(target_logps), both(plainly)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("dtype, precise", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_in_half_precision_the_log_softmax_is_float32_and_nothing_overflows(dtype, precise, trained):
    # Logits of thousands, rounded by whole nats: an exponential or a sum of them would be infinite in float16.
    hidden, head, targets = made(130, dtype=dtype)
    hidden, head = hidden * 10, Head(head.weight * 10)
    logps, found = gradients(target_logps, hidden, head, targets, trained)
    exact, expected = gradients(plainly, hidden, head, targets, trained)
    assert logps.dtype == torch.float32
    assert float(exact.min()) < -1000
    torch.testing.assert_close(logps.double(), exact, rtol=4 * precise, atol=2000 * precise)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.05


def test_the_probabilities_of_a_large_vocabulary_are_no_more_than_float16_holds():
    # Before their division by the sum, 100,000 exponentials of nothing add up to more than that.
    hidden, weight, targets = torch.zeros(3, 4).half(), torch.ones(100_000, 4).half(), torch.tensor([0, 1, 2])
    weight[:, 0] = torch.linspace(-1, 1, 100_000)
    _, (found,) = gradients(target_logps, hidden, Head(weight), targets, False)
    _, (expected,) = gradients(plainly, hidden, Head(weight), targets, False)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_nothing_as_large_as_tokens_times_vocabulary_outlives_the_forward_pass(trained):
    hidden, head, targets = made(200, bias=True, softcap=5.0)
    for leaf in (hidden, *([head.weight, head.bias] if trained else [])):
        leaf.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
        logps = target_logps(hidden, head, targets)
    assert sum(map(torch.Size.numel, kept)) <= 4 * head.weight.numel() + 2 * hidden.numel()
    assert not any(VOCABULARY in shape and shape != head.weight.shape and shape != (VOCABULARY,) for shape in kept)
    logps.sum().backward()
    assert hidden.grad is not None


def test_logits_are_there_for_a_chunk_of_tokens_at_a_time(monkeypatch):
    seen, normalize = [], heads._normalize
    monkeypatch.setattr(
        heads, "_normalize", lambda logits, *rest, **more: seen.append(len(logits)) or normalize(logits, *rest, **more)
    )
    target_logps(*made(130))
    assert seen == [64, 64, 2]


def test_a_head_that_is_trained_costs_no_gradient_where_none_is_asked_for():
    hidden, head, targets = made(70)
    head.weight.requires_grad_()
    with torch.inference_mode():
        logps = target_logps(hidden, head, targets)
    torch.testing.assert_close(logps.double(), plainly(hidden, head, targets).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale, softcap", [(1.0, None), (0.5, None), (1.0, 3.0), (0.5, 3.0)])
def test_logits_are_scaled_first_and_capped_then(scale, softcap):
    raw = torch.tensor([[-8.0, 0.0, 4.0]])
    expected = raw * scale if softcap is None else softcap * torch.tanh(raw * scale / softcap)
    assert Head(torch.empty(0), None, scale, softcap).capped(raw).equal(expected)


def parted(hidden, head, targets):
    """The logps of `target_logps_and_squares`; the squares must have no gradient."""
    logps, squares = target_logps_and_squares(hidden, head, targets)
    assert logps.requires_grad and not squares.requires_grad
    return logps


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@settings(max_examples=30, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 64, 130]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.01, 1.0, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    bias=st.booleans(),
)
def test_whoever_asks_gets_the_sum_of_squares_too_and_the_same_logps_and_gradients(
    trained, tokens, seed, scale, softcap, bias
):
    hidden, head, targets = made(tokens, seed, scale, softcap, bias)
    _, squares = target_logps_and_squares(hidden, head, targets)
    exact = (2 * all_logps(hidden, head)).logsumexp(1)
    assert squares.dtype == torch.float32
    torch.testing.assert_close(squares.double(), exact, rtol=1e-5, atol=1e-5)
    logps, found = gradients(parted, hidden, head, targets, trained)
    alone, expected = gradients(target_logps, hidden, head, targets, trained)
    assert logps.equal(alone)
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_squares_of_half_precision_are_taken_in_float32():
    hidden, head, targets = made(70, dtype=torch.float16)
    _, squares = target_logps_and_squares(hidden * 10, Head(head.weight * 10), targets)
    assert squares.dtype == torch.float32
    assert float(squares.max()) <= 0
    exact = (2 * (hidden * 10 @ (head.weight * 10).t()).double().log_softmax(1)).logsumexp(1)
    torch.testing.assert_close(squares.double(), exact, rtol=0, atol=1e-5)


def test_nobody_pays_for_squares_that_he_did_not_ask_for(monkeypatch):
    taken, norm = [], torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda *given, **more: taken.append(1) or norm(*given, **more))
    target_logps(*made(130))
    assert not taken
    target_logps_and_squares(*made(130))
    assert len(taken) == 3
