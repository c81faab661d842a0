import sys
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.models.adapter_values import check_ranks, check_values, in_place_of

LORA = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.1, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4}}
NAN = float("nan")


def test_nothing_heavy_is_imported_to_look_at_values():
    code = "import sys, engine.models.adapter_values; sys.exit(any(name in sys.modules for name in ('torch', 'peft')))"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "change",
    [
        {}, {"lora_alpha": 16}, {"lora_dropout": 0}, {"target_modules": "all-linear"}, {"rank_pattern": None},
        {"target_modules": None, "target_parameters": ["mlp.experts.down_proj"]}, {"alpha_pattern": {"k_proj": 2.5}},
    ],
)  # fmt: skip
def test_what_peft_writes_passes(change):
    check_values(LORA | change, "sft")


@pytest.mark.parametrize("without", ["r", "lora_alpha", "target_modules"])
def test_what_is_missing_is_named_and_no_default_is_taken_for_it(without):
    with pytest.raises(ModelError, match=f"`{without}` of the adapter") as error:
        check_values({name: value for name, value in LORA.items() if name != without}, "sft")
    assert error.value.found == "nothing"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("r", value) for value in (0, -1, "two", 2.0, None, True, NAN, [8])),
        *(("lora_alpha", value) for value in (NAN, float("inf"), "16", None, True)),
        *(("lora_dropout", value) for value in (NAN, -0.1, 1.5, "none", None)),
        *(("rank_pattern", value) for value in (3, {"q": 0}, {"q": "x"}, ["q"])),
        *(("alpha_pattern", value) for value in ({"q": NAN}, "x")),
        *(("target_modules", value) for value in ([], "", 3, [3], {})),
    ],
)
def test_what_is_nothing_that_was_trained_is_named_with_a_fix_that_is_not_another_base(name, value):
    with pytest.raises(ModelError, match=f"`{name}` of the adapter") as error:
        check_values(LORA | {name: value}, "sft")
    assert error.value.expected
    assert error.value.where == "sft"
    assert "model.name" not in error.value.fix
    assert "adapter_config.json" in error.value.fix


def test_weights_of_a_rank_that_is_not_stated_are_found_before_they_are_read():
    shapes = {"model.q_proj.lora_A.weight": [8, 16], "model.k_proj.lora_A.weight": [4, 16], "x.lora_B.weight": [16, 8]}
    check_ranks(LORA, shapes | {"embed_tokens.lora_embedding_A": [8, 300]}, "sft")
    with pytest.raises(ModelError, match="`r` of the adapter") as error:
        check_ranks(LORA | {"r": 3}, shapes, "sft")
    assert error.value.found == "8 in model.q_proj.lora_A.weight"


def test_what_to_do_with_another_kind_is_something_that_can_be_done():
    assert "train a LoRA instead" in in_place_of("PROMPT_TUNING")
    assert "merge it" in in_place_of("LOHA")
    for kind in (None, "", 3):
        assert '"peft_type": "LORA"' in in_place_of(kind)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.text(max_size=2))


@given(
    st.dictionaries(st.sampled_from([*LORA, "alpha_pattern"]), values | st.dictionaries(st.text(max_size=2), values))
)
def test_whatever_a_config_holds_it_is_taken_or_refused(settings):
    try:
        check_values(settings, "sft")
    except ModelError as error:
        assert error.fix
    else:
        check_ranks(settings, {}, "sft")
