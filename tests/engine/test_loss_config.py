from dataclasses import dataclass, fields
from typing import get_args

import pytest
from pydantic import ValidationError

from engine.config import Strict, load
from engine.dpo.loss_table import LOSSES, build
from engine.dpo.margin_losses import MarginLoss, Sigmoid
from engine.dpo.reference_free import Sft, Simpo
from engine.errors import ConfigError
from engine.loss_config import ANY_DIVERGENCE, PARAMETERS, REFERENCE_FREE, LossTerm, PreferenceConfig


@dataclass(frozen=True)
class Stage:
    name: str = "train"
    config: type[Strict] = PreferenceConfig


@pytest.fixture
def refusal(tmp_path):
    """What a user reads whose profile holds this line in its table [train]."""
    profile = tmp_path / "mine.toml"

    def of(line: str) -> str:
        profile.write_text(f"[train]\n{line}\n", "utf-8")
        with pytest.raises(ConfigError) as refused:
            load(str(profile), [], [Stage()], {})
        return str(refused.value)

    return of


def terms(*names: str) -> list[LossTerm]:
    return [LossTerm(name=name) for name in names]


def test_the_config_names_every_loss_there_is_and_the_parameters_that_it_has():
    assert set(get_args(LossTerm.model_fields["name"].annotation)) == set(LOSSES)
    for name, loss in LOSSES.items():
        assert set(PARAMETERS[name]) == {each.name for each in fields(loss)} - {"beta", "divergence", "coupled"}, name


def test_the_defaults_of_the_config_are_those_of_the_losses():
    for name in LOSSES:
        alone = {"beta": 0.1, "loss": [LossTerm(name=name).identity()]}
        assert build(alone).terms == build({"beta": 0.1, "loss": [{"name": name, "weight": 1.0}]}).terms, name


def test_which_losses_take_another_divergence_and_which_no_reference_is_as_the_losses_have_it():
    losses = dict(
        zip(LOSSES, build({"beta": 1.0, "loss": [{"name": n, "weight": 1.0} for n in LOSSES]}).terms, strict=True)
    )
    assert {name for name, (_, loss) in losses.items() if loss.reference_free} == REFERENCE_FREE
    assert {name for name, (_, loss) in losses.items() if isinstance(loss, MarginLoss | Sft)} == ANY_DIVERGENCE


def test_the_default_is_plain_dpo():
    loss = build(PreferenceConfig().spec())
    assert loss.terms == [(1.0, Sigmoid(0.1))]
    assert (loss.ld_alpha, loss.use_weighting) == (None, False)


def test_a_term_says_its_own_parameters_and_no_others():
    assert LossTerm(name="simpo", simpo_gamma=1.6).model_dump() == {
        "name": "simpo",
        "weight": 1.0,
        "label_smoothing": 0.0,
        "simpo_gamma": 1.6,
    }
    assert LossTerm(name="sft", weight=0.5).identity() == {"name": "sft", "weight": 0.5}


def test_a_default_that_is_written_out_is_the_same_term():
    assert LossTerm(name="exo_pair", label_smoothing=1e-3) == LossTerm(name="exo_pair")
    assert PreferenceConfig().identity()["loss"] == [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}]


def test_a_loss_can_be_given_by_its_name_alone():
    assert PreferenceConfig(loss="ipo").loss == terms("ipo")
    assert PreferenceConfig(loss=["robust", {"name": "sft", "weight": 0.5}]).loss == [
        *terms("robust"),
        LossTerm(name="sft", weight=0.5),
    ]


def test_one_term_need_not_be_a_list():
    assert PreferenceConfig(loss={"name": "simpo", "simpo_gamma": 1.6}).loss == [
        LossTerm(name="simpo", simpo_gamma=1.6)
    ]


def test_a_parameter_beside_the_list_is_told_where_it_belongs(refusal):
    told = refusal("label_smoothing = 0.1")
    assert "unknown key `train.label_smoothing`" in told
    assert "put `label_smoothing` into an entry of the list `train.loss`" in told


def test_the_whole_config_becomes_the_loss():
    config = PreferenceConfig(loss=[LossTerm(name="simpo", simpo_gamma=1.6), *terms("sft")], beta=2.0)
    assert config.reference_free
    assert build(config.spec()).terms == [(1.0, Simpo(2.0, 1.6)), (1.0, Sft())]
    weighted = PreferenceConfig(ld_alpha=0.5, use_weighting=True, f_divergence_type="alpha_divergence").spec()
    assert (build(weighted).ld_alpha, build(weighted).use_weighting) == (0.5, True)


def test_one_term_that_needs_the_reference_is_enough_to_need_it():
    assert PreferenceConfig(loss=terms("orpo")).reference_free
    assert not PreferenceConfig(loss=terms("simpo", "sigmoid")).reference_free


@pytest.mark.parametrize("given", [[], terms("sft"), terms("sft", "sft")])
def test_a_loss_without_a_preference_is_refused(given):
    with pytest.raises(ValidationError):
        PreferenceConfig(loss=given)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (["sigmoid", {"name": "simpo", "weight": 0}], "sigmoid"),
        (["simpo", {"name": "sigmoid", "weight": 0.0}], "simpo"),
        (["orpo", {"name": "sft", "weight": 0}], "orpo"),
        ([{"name": "hinge", "label_smoothing": 0}], "hinge"),
        (["sigmoid", {"name": "sft", "weight": 1, "label_smoothing": 0.0, "simpo_gamma": 0}], ["sigmoid", "sft"]),
    ],
)
def test_what_is_off_at_0_is_as_if_it_were_not_said(said, meant):
    assert PreferenceConfig(loss=said).identity() == PreferenceConfig(loss=meant).identity()
    assert PreferenceConfig(loss=said).spec() == PreferenceConfig(loss=meant).spec()


def test_terms_that_all_weigh_nothing_are_refused_and_one_that_weighs_nothing_is_still_read(refusal):
    told = refusal('loss = [{ name = "ipo", weight = 0 }]')
    assert "a term with a weight above 0" in told
    assert 'train.loss=[{name="ipo", weight=0.5}]' in told
    assert "did you mean `simpo`?" in refusal('loss = ["sigmoid", { name = "simpoo", weight = 0 }]')
    assert "0 or more" in refusal('loss = ["sigmoid", { name = "sft", weight = -1 }]')
    assert "cannot be False" in refusal('loss = [{ name = "ipo", label_smoothing = false }]')


def test_an_sft_term_beside_orpo_is_refused_since_it_would_count_twice(refusal):
    told = refusal('loss = ["orpo", { name = "sft", weight = 0.2 }]')
    assert "orpo without sft, whose loss it holds" in told
    assert "a smaller train.beta gives it more weight" in told


def test_the_weighing_of_tokens_that_changes_no_weight_is_plain_dpo():
    assert PreferenceConfig(ld_alpha=1) == PreferenceConfig()
    assert PreferenceConfig(ld_alpha=1).spec() == PreferenceConfig().spec()
    assert PreferenceConfig(loss="simpo", ld_alpha=1).reference_free
    assert PreferenceConfig(ld_alpha=0.999).ld_alpha == 0.999


def test_what_is_refused_of_the_weighing_of_tokens_is_told_how_to_do_without_it(refusal):
    assert "--set train.ld_alpha=1" in refusal('ld_alpha = "none"')


def test_an_unknown_loss_is_refused_with_the_nearest_name(refusal):
    told = refusal('loss = [{ name = "sigmoid_nrom" }]')
    assert "`train.loss" in told
    assert "did you mean `sigmoid_norm`?" in told
    assert "bco_pair" in told


def test_a_parameter_that_the_loss_does_not_have_is_refused_with_those_it_has_and_the_losses_that_have_it(refusal):
    told = refusal('loss = [{ name = "ipo", label_smoothing = 0.1 }]')
    assert "ipo has no parameter" in told
    assert "label_smoothing on sigmoid, exo_pair, robust" in told
    assert "sigmoid has label_smoothing" in refusal('loss = [{ name = "sigmoid", simpo_gamma = 1.0 }]')
    assert "did you mean `simpo_gamma`?" in refusal('loss = [{ name = "simpo", gamma = 1.0 }]')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('loss = [{ name = "exo_pair", label_smoothing = 0 }]', "label_smoothing above 0"),
        ('loss = [{ name = "robust", label_smoothing = 0.5 }]', "less than 0.5"),
        ('loss = [{ name = "discopop", discopop_tau = 0 }]', "greater than 0"),
        ('loss = [{ name = "discopop", discopop_tau = 2 }]', "at most 1"),
        ('loss = [{ name = "simpo", simpo_gamma = -1 }]', "0 or more"),
        ("loss = [{ weight = 1 }]", "name"),
        ("ld_alpha = 1.5", "from 0 to 1"),
        ("f_alpha_divergence_coef = 0.7", "alpha_divergence"),
        ('f_divergence_type = "forward"', "forward_kl"),
    ],
)
def test_a_value_that_a_loss_cannot_take_is_refused(refusal, line, reason):
    assert reason in refusal(line)


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - ANY_DIVERGENCE))
def test_another_divergence_is_refused_for_losses_of_each_side(refusal, name):
    told = refusal(f'loss = [{{ name = "sigmoid" }}, {{ name = "{name}" }}]\nf_divergence_type = "forward_kl"')
    assert f"without {name}" in told
    assert "forward_kl" in told


@pytest.mark.parametrize("name", sorted(ANY_DIVERGENCE - {"sft"}))
def test_another_divergence_is_taken_by_losses_of_the_margin(name):
    PreferenceConfig(loss=terms(name, "sft"), f_divergence_type="js_divergence")


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "orpo"])
def test_weights_of_pairs_are_refused_where_no_pair_can_be_weighed(refusal, name):
    assert f"use_weighting without {name}" in refusal(f'loss = [{{ name = "{name}" }}]\nuse_weighting = true')


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_weights_of_tokens_are_refused_where_the_length_is_gone_anyway(refusal, name):
    assert f"ld_alpha without {name}" in refusal(f'loss = [{{ name = "{name}" }}]\nld_alpha = 0.5')
