import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import load
from engine.new_profile import Known, profile_text
from tasks import SHARED, STAGES

CHAT = Known("owner/chat", "owner/chat", True, 0.5, 24.0, {"files": "pairs.jsonl"}, "messages; 300 pairs", 300, 700)


def settings(known, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(profile_text(known), "utf-8")
    return load(str(path), [], STAGES, SHARED)


@pytest.mark.parametrize(("policy", "chat"), [("", False), ("owner/chat", True), ("", None)])
@pytest.mark.parametrize("gpu", [0.0, 24.0])
@pytest.mark.parametrize("size", [None, 0.01, 2.0, 7.0, 70.0])
def test_every_combination_loads(tmp_path, policy, chat, gpu, size):
    settings(replace(CHAT, policy=policy, chat=chat, gpu_gib=gpu, parameters=size), tmp_path)


@given(
    model=st.text(min_size=1).filter(lambda text: text.isprintable()),
    pairs=st.integers(0, 10**7),
    tokens=st.integers(1, 10**6),
)
def test_any_name_is_read_back_as_it_was(model, pairs, tokens):
    text = profile_text(replace(CHAT, model=model, policy=model, pairs=pairs, tokens=tokens))
    assert tomllib.loads(text)["model"]["name"] == model


def test_weights_that_leave_too_little_room_are_quantised_and_those_that_never_fit_are_told():
    assert 'quantization = "4bit"' not in profile_text(CHAT)
    assert 'quantization = "4bit"' in profile_text(replace(CHAT, parameters=7.6))
    assert "take a smaller model" not in profile_text(replace(CHAT, parameters=7.6))
    assert "take a smaller model" in profile_text(replace(CHAT, parameters=70.0))


def test_lengths_and_numbers_of_pairs_decide_what_they_should(tmp_path):
    small = settings(CHAT, tmp_path)
    assert small.stages["tokenize"].max_length == 768
    assert small.stages["subsample"].pairs == "all"
    assert small.stages["train"].batch_size == 8
    large = settings(replace(CHAT, pairs=60_000, tokens=None), tmp_path)
    assert large.stages["subsample"].pairs == 25_000
    assert large.stages["train"].batch_size == 32


def test_a_policy_that_is_known_by_its_name_alone_is_told_as_that(tmp_path):
    assert "by its name" not in profile_text(CHAT)
    known = replace(CHAT, chat=None, by_name=True)
    assert "by its name" in profile_text(known)
    assert settings(known, tmp_path).stages["train"].model.policy == CHAT.policy


def test_no_reason_speaks_of_a_number_that_something_else_decides():
    own = profile_text(replace(CHAT, policy="", more={"train": {"learning_rate": 1e-3}}))
    assert "times DPO" not in own
    assert "this size" not in profile_text(replace(CHAT, parameters=None))


def test_a_name_of_several_lines_leaves_its_comment_a_comment(tmp_path):
    assert settings(replace(CHAT, model="a\nb", policy=""), tmp_path).stages["train"].model.name == "a\nb"


def test_without_a_policy_the_profile_says_how_one_is_made(tmp_path):
    made = settings(replace(CHAT, policy="", chat=False), tmp_path)
    assert made.stages["sft"].method == "lora"
    assert made.stages["tokenize"].template == "plain"
