import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loss_config import PARAMETERS, LossTerm, PreferenceConfig
from engine.trained_loss import is_reference_free, loss_of

DPO = PreferenceConfig().spec()


def test_what_a_training_hands_down_is_read_as_it_was_and_nothing_besides():
    spec = PreferenceConfig(beta=2.0, loss=[LossTerm(name="simpo", simpo_gamma=0.3), LossTerm(name="sft")]).spec()
    assert loss_of({"how": {"dtype": "float32"}, "monitor": {}, **spec}) == spec


def test_a_hand_down_of_an_earlier_version_means_the_same_loss():
    assert loss_of({"beta": 0.1, "loss": [{"name": "sigmoid", "weight": 1.0}]}) == DPO
    smoothed = [{"name": name, "weight": 1.0, "label_smoothing": 0.0} for name in ("sigmoid", "sft")]
    both = PreferenceConfig(loss=[LossTerm(name="sigmoid"), LossTerm(name="sft")])
    assert loss_of({"beta": 0.1, "loss": smoothed}) == both.spec()


def test_weights_that_change_nothing_make_no_other_loss():
    assert loss_of(DPO | {"ld_alpha": 1.0}) == loss_of(DPO | {"ld_alpha": 1}) == DPO
    assert loss_of(DPO | {"loss": [*DPO["loss"], {"name": "sft", "weight": 0.0}]}) == DPO


@pytest.mark.parametrize("key", ["f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "beta"])
def test_another_value_is_another_loss(key):
    assert loss_of(DPO | {key: 0.7}) != DPO


def test_what_nobody_can_make_sense_of_stays_as_it_is_and_what_is_missing_is_missing():
    strange = [
        {"name": "of a later version", "depth": 3},
        {"name": ["x"]},
        "sigmoid",
        None,
        {"name": "ipo", "weight": -1},
    ]
    assert loss_of({"loss": strange})["loss"] == strange
    assert not {"beta", "loss"} & loss_of({}).keys()
    assert "loss" not in loss_of({"loss": 3})


@given(st.sets(st.sampled_from(sorted(PARAMETERS)), min_size=1))
def test_a_loss_is_reference_free_where_its_config_says_so(names):
    terms = [{"name": name} for name in sorted(names)]
    if names == {"sft"}:
        terms.append({"name": "simpo"})
    if names >= {"orpo", "sft"}:
        terms.remove({"name": "sft"})
    told = PreferenceConfig.model_validate({"loss": terms})
    assert is_reference_free(told.spec()) == told.reference_free


@pytest.mark.parametrize("loss", [None, [], 3, "simpo", [None], [{"name": ["simpo"]}], [{"name": "later"}]])
def test_an_unknown_loss_is_taken_for_one_with_a_reference(loss):
    assert not is_reference_free({"loss": loss})
