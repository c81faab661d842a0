import json

import pytest
import torch
from safetensors.torch import save_file

from engine import beginning
from engine.beginning import has_chat_template, look, parameters_of


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(tmp_path):
    """A folder as transformers leaves one, of 1,000 bfloat16 parameters."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.zeros(1000, dtype=torch.bfloat16)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def test_the_size_of_a_folder_is_that_of_its_weights(model):
    assert parameters_of(str(model)) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("owner/SmolLM2-135M", 0.135),
        ("owner/Llama-3-8b-chat", 8.0),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7.0),
        ("m" * 300, None),
        ("owner/it", None),
    ],
)
def test_the_size_of_what_cannot_be_reached_is_told_by_its_name(name, billions):
    assert parameters_of(name) == billions


def test_a_chat_template_is_seen_in_either_place(model):
    assert has_chat_template(str(model)) is False
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(str(model)) is True
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert has_chat_template(str(model)) is True
    assert has_chat_template("owner/name") is None


def test_a_chat_model_is_what_dpo_starts_from_and_another_is_not(model, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    assert look(str(model), data, gpu_gib=0).policy == ""
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert look(str(model), data, gpu_gib=0).policy == str(model)
    assert look(str(model), data, policy="owner/other", gpu_gib=0).policy == "owner/other"


@pytest.mark.parametrize("name", ["owner/Qwen2.5-7B-Instruct-1M", "owner/Llama-2-7b-chat-hf", "owner/gemma-2-2b-it"])
def test_where_nobody_can_look_a_name_that_says_it_is_tuned_is_taken_at_its_word(name, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    known = look(name, data, gpu_gib=0)
    assert (known.policy, known.by_name) == (name, True)
    given = look(name, data, policy="", gpu_gib=0)
    assert (given.policy, given.by_name) == ("", False)


@pytest.mark.parametrize("name", ["owner/Qwen2.5-7B", "owner/chatterbox-1b", "chat/gemma-2-2b", "owner/edit-1b"])
def test_a_name_that_does_not_say_so_is_a_base(name, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    assert look(name, data, gpu_gib=0).policy == ""


def test_what_can_be_looked_at_is_not_judged_by_its_name(model, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    named = model.rename(tmp_path / "base-instruct")
    assert look(str(named), data, gpu_gib=0).policy == ""


def test_lengths_are_told_by_characters_and_chinese_ones_hold_more(tmp_path):
    english = write(tmp_path / "en.jsonl", [{"prompt": "x" * 400, "chosen": "y" * 400, "rejected": "z"}] * 3)
    chinese = write(tmp_path / "zh.jsonl", [{"prompt": "问" * 400, "chosen": "答" * 400, "rejected": "否"}] * 3)
    assert look("owner/name", english, gpu_gib=0).tokens == 200
    assert look("owner/name", chinese, gpu_gib=0).tokens == pytest.approx(571, abs=2)


def test_of_a_long_file_only_the_beginning_is_read_and_the_number_of_pairs_is_left_open(tmp_path, monkeypatch):
    monkeypatch.setattr(beginning, "_LOOKED_AT_ROWS", 5)
    rows = [{"prompt": f"{row}?", "chosen": "b", "rejected": "c"} for row in range(6)]
    known = look("owner/name", write(tmp_path / "pairs.jsonl", rows), gpu_gib=0)
    assert known.pairs is None
    assert "5 pairs in the first 5 rows" in known.data


def test_a_data_set_on_the_hub_is_named_and_not_read():
    known = look("owner/name", "owner/pairs", gpu_gib=0)
    assert known.download == {"dataset": "owner/pairs"}
    assert (known.data, known.pairs, known.tokens) == ("", None, None)
