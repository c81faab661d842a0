import math

import pytest

from engine.dpo.divergences import AlphaDivergence
from engine.dpo.loss_table import LOSSES, build
from engine.dpo.losses import StepCounts
from engine.dpo.margin_losses import Discopop, ExoPair, Sigmoid
from engine.dpo.reference_free import Sft, Simpo


def term(name: str, weight: float = 1.0, **parameters: float) -> dict[str, object]:
    return {"name": name, "weight": weight, **parameters}


def test_a_list_of_terms_becomes_the_weighted_sum(logps):
    terms = [term("sigmoid", 2.0, label_smoothing=0.1), term("sft", 0.25)]
    loss = build({"beta": 0.5, "loss": terms})
    assert loss.terms == [(2.0, Sigmoid(0.5, 0.1)), (0.25, Sft())]
    # Logratios 1 and −1: times β the margin is 1.
    smooth = 0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1))
    found = loss(logps((-10.0, -12.0, -11.0, -11.0)), StepCounts(1, 4))
    assert float(found) == pytest.approx(2 * smooth + 0.25 * 10 / 4, rel=1e-12)


def test_every_term_gets_its_own_parameters_and_what_all_share():
    terms = [term("discopop", discopop_tau=0.2), term("simpo", simpo_gamma=1.5), term("exo_pair", label_smoothing=0.01)]
    loss = build({"beta": 0.3, "loss": terms, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7})
    alpha = AlphaDivergence(0.7)
    assert [each for _, each in loss.terms] == [
        Discopop(0.3, 0.2, divergence=alpha),
        Simpo(0.3, 1.5),
        ExoPair(0.3, 0.01, divergence=alpha),
    ]


def test_what_an_earlier_version_handed_down_is_plain_dpo():
    terms = [term("sigmoid", label_smoothing=0.0), term("sft", label_smoothing=0.0)]
    loss = build({"beta": 0.1, "loss": terms, "monitor": {}})
    assert loss.terms == [(1.0, Sigmoid(0.1)), (1.0, Sft())]
    assert (loss.ld_alpha, loss.use_weighting, loss.coupled) == (None, False, False)


def test_the_weights_of_tokens_and_of_pairs_are_handed_on_and_couple_the_sft_term():
    loss = build({"beta": 0.1, "loss": [term("sigmoid"), term("sft")], "ld_alpha": 0.4, "use_weighting": True})
    assert (loss.ld_alpha, loss.use_weighting) == (0.4, True)
    assert loss.terms[1][1] == Sft(coupled=True)
    assert loss.coupled


def test_tokens_that_all_weigh_the_same_are_not_weighed():
    assert build({"beta": 0.1, "loss": [term("sigmoid")], "ld_alpha": 1.0}).ld_alpha is None
    assert build({"beta": 0.1, "loss": [term("sigmoid")], "ld_alpha": 0.0}).ld_alpha == 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_made_with_its_defaults(name):
    loss = build({"beta": 0.1, "loss": [term(name)]})
    assert loss.coupled == name.startswith("aot")
    assert loss.reference_free == (name in ("sft", "simpo", "orpo"))
    assert bool(loss.preference_part().terms) == (name != "sft")


ZERO = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "exo_pair": -math.log(2) - 0.5 * (math.log(0.999) + math.log(0.001)),
    "nca_pair": 2 * math.log(2),
    "robust": math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 50.0,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (1 + math.log(2)) / 2,
    "sigmoid_norm": math.log(2),
}


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", ZERO)
def test_where_policy_is_reference_every_loss_has_a_value_of_its_own_under_any_divergence(logps, name, kind):
    loss = build({"beta": 0.1, "loss": [term(name)], "f_divergence_type": kind})
    same = logps((-10.0, -12.0, -10.0, -12.0), (-3.0, -7.0, -3.0, -7.0), tokens=[(4, 5), (3, 2)])
    assert float(loss(same, StepCounts(2, 7))) == pytest.approx(ZERO[name], rel=1e-12)
