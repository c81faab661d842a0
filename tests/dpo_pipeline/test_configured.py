from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_pipeline._configured import plain, settings_of
from engine.errors import ConfigError


def test_values_of_python_reach_the_configuration_as_they_are(folder):
    settings = settings_of(
        "demo",
        {
            "train.beta": 0.2,
            "train.epochs": 2,
            "train.loss": [{"name": "sigmoid", "weight": 1}, {"name": "sft", "weight": 0.5}],
            "train.lora": {"rank": 4, "alpha": 8},
            "runtime.compile": True,
            "runtime.artifacts": Path("elsewhere") / "a b",
            "runtime.trackers": [],
        },
    )
    train = settings.stages["train"]
    assert (train.beta, train.epochs, train.lora.rank) == (0.2, 2, 4)
    assert [(term.name, term.weight) for term in train.loss] == [("sigmoid", 1), ("sft", 0.5)]
    assert settings.runtime.compile
    assert settings.runtime.artifacts == Path("elsewhere/a b")
    assert settings.runtime.trackers == []


def test_numbers_of_numpy_are_numbers(folder):
    settings = settings_of("demo", {"train.beta": np.float64(0.25), "subsample.pairs": np.int64(7)})
    assert settings.stages["train"].beta == 0.25
    assert settings.stages["subsample"].pairs == 7
    assert plain({"a": np.arange(2), "b": (np.bool_(True), Path("x"))}) == {"a": [0, 1], "b": [True, "x"]}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_that_text(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.config.PROFILES", Path(__file__).parents[2] / "configs")
        settings = settings_of("demo-files", {"download.files": text, "model.policy": text})
        assert settings.stages["download"].files == text
        assert settings.shared["model"].policy == text


def test_what_can_be_no_value_is_refused_by_its_key(folder):
    with pytest.raises(ConfigError, match=r"`train\.ld_alpha` cannot be None") as error:
        settings_of("demo", {"train.ld_alpha": None})
    assert "default" in error.value.fix
    with pytest.raises(ConfigError, match=r"`train\.beta` cannot be <object"):
        settings_of("demo", {"train.beta": object()})
    with pytest.raises(ConfigError, match=r"did you mean `train\.beta`"):
        settings_of("demo", {"train.bta": 0.1})
    with pytest.raises(ConfigError, match="there is no profile `dmo`; did you mean `demo`"):
        settings_of("dmo", None)
