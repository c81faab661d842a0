import math

import pytest
import torch

from engine.dpo.divergences import (
    FARTHEST,
    AlphaDivergence,
    divergence,
    forward_kl,
    js_divergence,
    reverse_kl,
    squarable,
)

ALL = [reverse_kl, forward_kl, js_divergence, AlphaDivergence(0.5), AlphaDivergence(1.0), AlphaDivergence(2.0)]


def at(logratio: float) -> torch.Tensor:
    return torch.tensor([logratio], dtype=torch.float64)


def test_at_ratio_two_they_are_the_derivatives_of_their_generators():
    u = at(math.log(2))
    assert float(reverse_kl(u)) == pytest.approx(math.log(2))
    assert float(forward_kl(u)) == pytest.approx(1 - 1 / 2)
    assert float(js_divergence(u)) == pytest.approx(math.log(4 / 3))
    assert float(AlphaDivergence(0.5)(u)) == pytest.approx((2**-0.5 - 1) / -0.5)


@pytest.mark.parametrize("kind", ALL)
def test_a_response_as_likely_as_under_the_reference_is_worth_nothing_and_its_slope_there_is_that_of_dpo(kind):
    u = at(0.0).requires_grad_()
    score = kind(u)
    score.backward()
    assert float(score.detach()) == pytest.approx(0, abs=1e-12)
    assert float(u.grad) == pytest.approx(0.5 if kind is js_divergence else 1.0)


@pytest.mark.parametrize("kind", ALL)
def test_the_likelier_response_is_worth_more(kind):
    scores = kind(torch.linspace(-20, 20, 81, dtype=torch.float64))
    assert (scores.diff() > 0).all()


def test_the_alpha_divergence_is_the_reverse_kl_at_one_and_the_forward_kl_at_zero():
    u = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.equal(AlphaDivergence(1.0)(u), u)
    assert torch.allclose(AlphaDivergence(1 + 1e-5)(u), u, rtol=1e-4)
    assert torch.allclose(AlphaDivergence(0.0)(u), forward_kl(u))


def test_an_exponent_beyond_the_farthest_stays_there_and_has_no_slope():
    u = at(-1e4).requires_grad_()
    score = forward_kl(u)
    score.backward()
    assert float(score.detach()) == pytest.approx(-math.exp(FARTHEST))
    assert float(u.grad) == 0
    assert float(AlphaDivergence(2.0)(at(1e4))) == pytest.approx(math.exp(FARTHEST))


def test_a_score_for_a_square_stays_where_float32_holds_its_square():
    u = torch.tensor([-1e4, -39.0, 3.0], dtype=torch.float64, requires_grad=True)
    score = squarable(forward_kl(u))
    score.sum().backward()
    assert score.tolist() == pytest.approx([-math.exp(40), 1 - math.exp(39), 1 - math.exp(-3)], rel=1e-12)
    assert u.grad.tolist() == pytest.approx([0.0, math.exp(39), math.exp(-3)], rel=1e-12)


def test_each_has_its_name():
    assert divergence("reverse_kl", 0.5) is reverse_kl
    assert divergence("forward_kl", 0.5) is forward_kl
    assert divergence("js_divergence", 0.5) is js_divergence
    assert divergence("alpha_divergence", 0.3) == AlphaDivergence(0.3)
    with pytest.raises(KeyError):
        divergence("hellinger", 0.5)
