import json

import pytest

from engine.errors import ModelError
from engine.exporting.given_policy import copy_policy

MODEL = ["config.json", "generation_config.json", "model.safetensors"]
TOKENIZER = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer.model",
]  # fmt: skip
OTHERS = [
    ".env", ".git/config", "optimizer.pt", "optimizer.safetensors", "scheduler.pt", "rng_state.pth",
    "training_args.bin", "trainer_state.json", "pytorch_model.bin", "notes.txt", "train.py", "hf_token",
    "runs/events.out", "scores.parquet", "checkpoint-10/model.safetensors", "adapter_model.safetensors", "README.md",
    "secrets.json",
]  # fmt: skip


def filled(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def copied(source, target, *, code=False):
    copy_policy(source, target, code=code)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def test_what_a_model_is_loaded_from_is_copied_and_nothing_that_lies_beside_it(tmp_path):
    source = filled(tmp_path / "policy", [*MODEL, *TOKENIZER, *OTHERS])
    assert copied(source, tmp_path / "out") == sorted([*MODEL, *TOKENIZER])


def test_weights_in_parts_are_those_that_their_index_names(tmp_path):
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    source = filled(tmp_path / "policy", ["config.json", *parts, "model-00003-of-00003.safetensors"])
    index = {"weight_map": {"a": parts[0], "b": parts[1], "c": parts[0]}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert copied(source, tmp_path / "out") == ["config.json", *parts, "model.safetensors.index.json"]


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"weight_map": {"a": "gone.safetensors"}}', '{"weight_map": {"a": "../secret.safetensors"}}',
              '{"weight_map": {"a": ".env"}}', '{"weight_map": [1]}', "{"],
)  # fmt: skip
def test_weights_that_are_not_there_or_lie_elsewhere_are_refused(tmp_path, index):
    filled(tmp_path, ["secret.safetensors"])
    source = filled(tmp_path / "policy", ["config.json", ".env"])
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError) as error:
        copy_policy(source, tmp_path / "out", code=False)
    assert error.value.found or error.value.expected


def test_code_goes_along_where_it_may_run_and_only_what_the_configs_name(tmp_path):
    source = filled(tmp_path / "policy", [*MODEL, *TOKENIZER, "deploy.py"])
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (source / "config.json").write_text(json.dumps({"auto_map": auto | {"AutoModel": "org/other--elsewhere.Own"}}))
    (source / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["token_own.T", None]}}))
    (source / "modeling_own.py").write_text("from .layers_own import Layer\n")
    for name in ("configuration_own.py", "layers_own.py", "token_own.py", "elsewhere.py"):
        (source / name).write_text("")
    code = ["configuration_own.py", "layers_own.py", "modeling_own.py", "token_own.py"]
    assert copied(source, tmp_path / "out", code=True) == sorted([*MODEL, *TOKENIZER, *code])
    assert copied(source, tmp_path / "without") == sorted([*MODEL, *TOKENIZER])
