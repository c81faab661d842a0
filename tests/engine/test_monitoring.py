from dataclasses import fields

import pytest
from pydantic import ValidationError

from engine.errors import ConfigError
from engine.monitoring import MonitorConfig, fixed_prompts
from engine.sources import Sources
from engine.training.monitor import Thresholds


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path, network=False)


def test_the_thresholds_are_the_engines_unless_they_are_set():
    assert MonitorConfig().thresholds() == Thresholds()
    assert MonitorConfig(displacement=1.5, checks=3).thresholds() == Thresholds(displacement=1.5, checks=3)
    assert {each.name for each in fields(Thresholds)} <= set(MonitorConfig.model_fields)


def test_who_only_warns_has_no_identity_and_who_may_stop_has_all_but_where_the_prompts_lie():
    assert MonitorConfig(every_steps=3, empty=0.9).identity() == {}
    identity = MonitorConfig(action="stop").identity()
    assert set(identity) == set(MonitorConfig.model_fields) - {"prompts"}
    assert identity["action"] == "stop"


def test_the_prompts_content_counts_only_where_it_may_stop_and_only_when_they_are_asked(tmp_path, sources):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Why?"}\n')

    def found(**others):
        return MonitorConfig(prompts=[str(path)], **others).sources(sources)

    assert found() == {}
    before = found(action="stop")
    assert before == found(action="stop")
    path.write_text('{"prompt": "Who?"}\n')
    assert found(action="stop") != before


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_prompts_that_are_not_there_are_an_error_either_way_unless_nothing_is_asked(sources, action):
    with pytest.raises(ConfigError, match="no file matches"):
        MonitorConfig(action=action, prompts=["nowhere.jsonl"]).sources(sources)
    MonitorConfig(prompts=["nowhere.jsonl"], every_steps=0).sources(sources)


def test_who_may_stop_a_training_has_to_look_at_its_answers_and_is_told_why():
    assert MonitorConfig(every_steps=0).every_steps == 0
    with pytest.raises(ValidationError, match=r"every_steps above 0 beside action = \"stop\".*is the untrained one"):
        MonitorConfig(action="stop", every_steps=0)


def test_a_dozen_of_each_kind_are_asked_in_their_order_with_languages_in_turn(sources):
    prompts = fixed_prompts(["shipped"], sources)
    assert [prompt.kind for prompt in prompts] == ["adversarial"] * 12 + ["normal"] * 12
    assert all((place % 2 == 1) == ("\u4e00" <= prompt.prompt[0] <= "\u9fff") for place, prompt in enumerate(prompts))
    assert len({prompt.prompt for prompt in prompts}) == 24
    assert prompts == fixed_prompts(["shipped"], sources)


def test_a_set_in_one_language_keeps_its_order_and_a_small_one_is_asked_whole(tmp_path, sources):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "Question {number}?", "kind": "normal"}}\n' for number in range(5)))
    assert [prompt.prompt for prompt in fixed_prompts([str(path)], sources)] == [f"Question {n}?" for n in range(5)]


@pytest.mark.parametrize(
    "wrong",
    [{"action": "hope"}, {"every_steps": -1}, {"prompts": []}, {"displacement": 0}, {"empty": 2}, {"checks": 0}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        MonitorConfig(**wrong)
