import json
import sys
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, ModelError, PipelineError
from engine.models.adapter_config import (
    CONFIG,
    WEIGHTS,
    adapter_settings,
    check_continuable,
    check_mergeable,
    check_shape,
    doubled,
    folder_of,
    is_same_base,
)

LORA = {
    "peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 8, "lora_alpha": 16.0, "bias": "none",
    "target_modules": ["v_proj", "q_proj"], "use_rslora": False, "init_lora_weights": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(LORA))
    (tmp_path / WEIGHTS).write_bytes(b"")
    return tmp_path


def test_nothing_heavy_is_imported_to_look_at_an_adapter():
    code = "import sys, engine.models.adapter_config; sys.exit(any(name in sys.modules for name in ('torch', 'peft')))"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lora_on_its_base_may_be_merged_and_trained_further(folder):
    settings = adapter_settings(folder, "sft")
    assert settings == LORA
    check_mergeable(settings, folder, "owner/base", "sft")
    check_continuable(settings, "sft")
    check_shape(settings, {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"], "rank_pattern": {}}, "sft")


def test_a_folder_without_the_config_is_no_adapters(tmp_path):
    assert adapter_settings(tmp_path, "model") is None
    assert folder_of(str(tmp_path)) == tmp_path
    assert folder_of("owner/name") is folder_of("") is folder_of("a" * 5000) is folder_of("\0") is None


@pytest.mark.parametrize("content", ["{", "[]", '"LORA"', "[" * 5000])
def test_a_broken_config_is_said_to_be_one(folder, content):
    (folder / CONFIG).write_text(content)
    with pytest.raises(ModelError, match="the adapter cannot be loaded"):
        adapter_settings(folder, "sft")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "this adapter cannot be merged"),
        ({"peft_type": None}, "this adapter cannot be merged"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "trained biases"),
        ({"megatron_config": {"a": 1}}, "this kind of LoRA adapter cannot be merged"),
        ({"alora_invocation_tokens": [1, 2]}, "this kind of LoRA adapter cannot be merged"),
        ({"base_model_name_or_path": "owner/other"}, "trained on another base"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_fix(folder, change, problem):
    with pytest.raises(ModelError, match=problem) as caught:
        check_mergeable(LORA | change, folder, "owner/base", "sft")
    assert caught.value.fix
    assert caught.value.where == "sft"


def test_weights_that_are_no_safetensors_and_a_base_that_is_not_named_are_refused(folder):
    with pytest.raises(ModelError, match="no base is named") as caught:
        check_mergeable(LORA, folder, "", "sft")
    assert caught.value.fix == 'set model.name = "owner/base"'
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="no weights that may be read"):
        check_mergeable(LORA, folder, "owner/base", "sft")


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "loftq"},
        {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3]},
    ],
)  # fmt: skip
def test_what_could_not_be_sealed_as_a_lora_is_not_trained_further(change):
    with pytest.raises(ModelError, match="cannot go on being trained as it is") as caught:
        check_continuable(LORA | change, "sft")
    assert 'train.lora.start = "fresh"' in caught.value.fix


@pytest.mark.parametrize(
    "stated",
    [
        {"rank": 16}, {"alpha": 8.0}, {"targets": ["q_proj"]}, {"rslora": True}, {"rank_pattern": {"q_proj": 4}},
    ],
)  # fmt: skip
def test_another_shape_than_the_adapters_is_refused_beside_its_own(stated):
    [(name, value)] = stated.items()
    with pytest.raises(ConfigError, match=rf"train\.lora\.{name} is not that of the adapter") as caught:
        check_shape(LORA, stated, "sft")
    assert caught.value.found == str(value)


@pytest.mark.parametrize("rslora", [False, True])
def test_at_twice_the_rank_a_shape_keeps_its_scale_everywhere(rslora):
    shape = {
        "r": 4, "lora_alpha": 8.0, "use_rslora": rslora, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 3.0},
        "target_modules": ["q", "v"],
    }  # fmt: skip
    twice, root = doubled(shape), 0.5 if rslora else 1
    assert (twice["r"], twice["rank_pattern"], twice["target_modules"]) == (8, {"q": 4}, ["q", "v"])
    assert twice["lora_alpha"] / 8**root == pytest.approx(8.0 / 4**root)
    assert twice["alpha_pattern"]["q"] / 4**root == pytest.approx(3.0 / 2**root)


def test_a_pattern_for_names_is_left_to_the_model_that_knows_them():
    check_shape(LORA, {"targets": "all-linear"}, "sft")


def test_a_base_is_told_by_its_path_or_the_hubs_name(tmp_path):
    copy = tmp_path / "elsewhere" / "base"
    copy.mkdir(parents=True)
    assert is_same_base("owner/base", "owner/base") and is_same_base("owner/base", str(copy))
    assert is_same_base("a/elsewhere/base", "owner/base") is False
    assert not is_same_base("owner/other", str(copy)) and not is_same_base("/nowhere/base", str(copy))


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)


@given(settings=st.dictionaries(st.sampled_from([*LORA, "modules_to_save", "lora_bias", "rank_pattern"]), values))
def test_whatever_a_config_holds_it_is_taken_or_refused_and_never_a_traceback(settings, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    for check in (
        lambda: check_mergeable(settings, folder, "owner/base", "sft"),
        lambda: check_continuable(settings, "sft"),
        lambda: check_shape(settings, {"rank": 8, "targets": ["q"], "rank_pattern": {"q": 2}}, "sft"),
    ):
        try:
            check()
        except PipelineError as error:
            assert error.where == "sft" or error.fix
