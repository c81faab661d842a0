import shlex
import tomllib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Strict, load
from engine.errors import ConfigError
from engine.loss_advice import unquoted
from engine.loss_config import PARAMETERS, PreferenceConfig
from engine.toml_text import assignment


@dataclass(frozen=True)
class Stage:
    name: str = "train"
    config: type[Strict] = PreferenceConfig


def lines(told: str) -> list[str]:
    """The overrides of every `--set` in a text, as a shell would pass them."""
    words = shlex.split(told)
    return [words[place + 1].rstrip(",") for place, word in enumerate(words) if word == "--set"]


@pytest.fixture
def refused(tmp_path):
    """What is expected in place of some overrides, and whether each line in it is taken."""
    profile = tmp_path / "mine.toml"
    profile.write_text("")

    def of(*overrides: str) -> tuple[str, list[str]]:
        with pytest.raises(ConfigError) as error:
            load(str(profile), overrides, [Stage()], {})
        told = error.value.expected
        for line in lines(told):
            load(str(profile), [line], [Stage()], {})
        return told, lines(told)

    return of


@pytest.mark.parametrize(
    ("given_", "line"),
    [
        ("train.loss=sigmod", "train.loss=sigmoid"),
        ("train.loss=SimPO", "train.loss=simpo"),
        ("train.loss=dpo", "train.loss=sigmoid"),
        ("train.loss=bco", "train.loss=bco_pair"),
        ("train.loss=something", "train.loss=sigmoid"),
        ("train.loss=", "train.loss=sigmoid"),
        ("train.loss=5", "train.loss=sigmoid"),
        ("train.loss=true", "train.loss=sigmoid"),
        ("train.loss=[]", "train.loss=sigmoid"),
        ("train.loss.0.weight=2", "train.loss=sigmoid"),
        ('train.loss=[["sigmoid",1]]', "train.loss=sigmoid"),
        ("train.loss=[{weight=1}]", "train.loss=sigmoid"),
        ('train.loss={name="simpo",gamma=1}', 'train.loss=[{name="simpo", simpo_gamma=1.0}]'),
        ('train.loss=[{name="ipo",foo=1}]', 'train.loss=[{name="ipo", weight=0.5}]'),
        ('train.loss=[{name="ipo",label_smoothing=0.1}]', 'train.loss=[{name="sigmoid", label_smoothing=0.1}]'),
        ('train.loss=[{name="robust",label_smoothing=0.5}]', 'train.loss=[{name="robust", label_smoothing=0.1}]'),
        ('train.loss=[{name="exo_pair",label_smoothing=0}]', 'train.loss=[{name="exo_pair", label_smoothing=1e-3}]'),
        ('train.loss=[{name="ipo",weight=-1}]', 'train.loss=[{name="ipo", weight=0.5}]'),
        ('train.loss=[{name="ipo",weight=0}]', 'train.loss=[{name="ipo", weight=0.5}]'),
        ('train.loss=[{name="ipo",weight="much"}]', 'train.loss=[{name="ipo", weight=0.5}]'),
        ('train.loss=[{name="simpo",simpo_gamma=-1}]', 'train.loss=[{name="simpo", simpo_gamma=1.0}]'),
        ('train.loss=[{name="discopop",discopop_tau=2}]', 'train.loss=[{name="discopop", discopop_tau=0.05}]'),
        ("train.loss=sft", 'train.loss=["sigmoid", {name="sft", weight=0.5}]'),
        ("train.loss=[{name=sigmoid,weight=0.5}]", 'train.loss=[{name="sigmoid",weight=0.5}]'),
        ("train.loss=[sigmoid,sft]", 'train.loss=["sigmoid","sft"]'),
        ("train.loss=sigmoid,sft", 'train.loss=["sigmoid","sft"]'),
        ("train.loss=[{name=sigmoid", 'train.loss=[{name="sigmoid", weight=0.5}]'),
        ("train.ld_alpha=1.5", "train.ld_alpha=0.5"),
        ("train.ld_alpha=no", "train.ld_alpha=0.5"),
        ("train.f_divergence_type=kl", "train.f_divergence_type=forward_kl"),
    ],
)
def test_what_is_refused_is_answered_with_a_line_that_is_taken_as_it_stands(refused, given_, line):
    assert refused(given_)[1][0] == line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.loss=simpo", "train.f_divergence_type=forward_kl"], "train.f_divergence_type=reverse_kl"),
        (["train.loss=aot", "train.use_weighting=true"], "train.use_weighting=false"),
        (["train.loss=orpo", "train.ld_alpha=0.5"], "train.ld_alpha=1"),
        (['train.loss=["orpo","sft"]'], "train.loss=orpo"),
    ],
)
def test_what_does_not_go_together_is_told_with_what_to_take_back(refused, overrides, line):
    assert refused(*overrides)[1][0] == line


def test_another_name_of_a_loss_is_known_for_what_is_meant(refused):
    assert "did you mean `sigmoid`?" in refused("train.loss=dpo")[0]


TERMS = st.fixed_dictionaries({"name": st.sampled_from(sorted(PARAMETERS)), "weight": st.floats(0, 9)})


@given(st.lists(TERMS, min_size=1))
def test_a_list_whose_quotes_the_shell_took_is_given_back_with_them(terms):
    text = assignment("", terms).partition(" = ")[2]
    [line] = lines(unquoted(text.replace('"', "")))
    assert tomllib.loads(f"loss = {line.partition('=')[2]}")["loss"] == terms


@given(st.text())
def test_whatever_was_typed_the_line_is_a_list(text):
    told = unquoted(text)
    assert isinstance(tomllib.loads(f"loss = {lines(told)[0].partition('=')[2]}")["loss"], list)
