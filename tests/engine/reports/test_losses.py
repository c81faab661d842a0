from engine.loss_config import LossTerm, PreferenceConfig
from engine.reports.losses import shared, terms


def test_a_loss_is_told_with_its_weights_and_the_parameters_that_do_something():
    loss = [LossTerm(name="sigmoid", label_smoothing=0.1), LossTerm(name="simpo", weight=0.5, simpo_gamma=0.3)]
    assert terms({"loss": [each.identity() for each in loss]}) == (
        "`sigmoid` (labels smoothed by 0.1) + 0.5 × `simpo` (γ 0.3)"
    )
    assert terms(PreferenceConfig().spec()) == "`sigmoid`"
    assert terms({"loss": [LossTerm(name="discopop").identity()]}) == "`discopop` (τ 0.05)"


def test_what_holds_for_all_terms_is_told_where_it_is_not_plain_dpo():
    assert list(shared(PreferenceConfig().spec())) == []
    every = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3, "ld_alpha": 0.5}
    assert list(shared(every | {"use_weighting": True})) == [
        "`alpha_divergence` with α 0.3",
        "tokens beyond the shorter response weigh 0.5",
        "pairs weighed by how likely the policy is to say them",
    ]
    assert list(shared({"f_divergence_type": "forward_kl", "ld_alpha": 0.0})) == [
        "`forward_kl`",
        "tokens beyond the shorter response weigh 0",
    ]


def test_what_is_not_told_or_makes_no_sense_is_left_out():
    for strange in ({}, {"loss": 3}, {"loss": [3, {}, {"weight": 2}]}, {"loss": "sigmoid"}):
        assert terms(strange) == ""
    odd = {"name": "sigmoid", "weight": "x", "label_smoothing": True}
    assert terms({"loss": [odd]}) == "`sigmoid`"
    assert list(shared({"f_divergence_type": 3, "ld_alpha": "x", "use_weighting": "no"})) == []


def test_text_from_anywhere_shows_as_text():
    told = terms({"loss": [{"name": "`<script>|" + "x" * 99}]})
    assert told.startswith(r"`'<script>\|xxx") and len(told) < 70
