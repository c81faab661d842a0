import json
import shutil

import pytest
import torch

from engine.errors import ModelError
from engine.models.contents import check_contents, config_of
from engine.models.loading import Place, load_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(make_llama, saved):
    """A model in several files, with their index."""
    return saved(make_llama(), max_shard_size="20KB")


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_in_several_files_passes_and_loads(model):
    assert len(list(model.glob("*.safetensors"))) > 1
    check_contents(Place(str(model)))
    load_model(Place(str(model)), dtype="float32")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../elsewhere/model.safetensors", "/etc/x.safetensors", 7])
def test_an_index_that_leads_elsewhere_or_to_a_pickle_is_refused(model, file):
    index = json.loads((model / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    torch.save({}, model / "pytorch_model.bin")
    shutil.copytree(model, model.parent / "elsewhere")
    changed(model / INDEX, weight_map=index["weight_map"] | {first: file})
    with pytest.raises(ModelError, match="files that may not be read") as caught:
        load_model(Place(str(model)), dtype="float32")
    assert caught.value.found == str(file)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../elsewhere/model.safetensors"])
def test_a_config_that_names_such_a_file_is_refused(model, file):
    changed(model / "config.json", transformers_weights=file)
    with pytest.raises(ModelError, match="files that may not be read"):
        load_model(Place(str(model)), dtype="float32")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_index_is_a_model_error(model, text):
    (model / INDEX).write_text(text)
    with pytest.raises(ModelError):
        load_model(Place(str(model)), dtype="float32")


def test_an_adapter_among_the_files_of_a_model_is_refused(model):
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter is named where a whole model is wanted"):
        load_model(Place(str(model)), dtype="float32")


def test_classes_of_another_repository_are_refused(model):
    changed(model / "config.json", auto_map={"AutoModelForCausalLM": "other/name--own.Model"})
    with pytest.raises(ModelError, match="another repository than its own"):
        load_model(Place(str(model), allow_code=True), dtype="float32")


KEYS = [
    f"{mark}{what}_implementation{end}"
    for mark in ("", "_")
    for what in ("attn", "experts")
    for end in ("", "_internal")
]


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_a_kernel_of_the_hub_is_refused_under_every_key(model, key, allowed):
    for value in ("third/kernel", "paged|third/kernel@v1:fn", {"": "sdpa", "text_config": "third/kernel"}):
        changed(model / "config.json", **{key: value})
        with pytest.raises(ModelError, match="names a kernel"):
            load_model(Place(str(model), allow_code=allowed), dtype="float32")


def test_a_kernel_of_the_hub_is_refused_in_a_config_inside_the_config(model):
    changed(model / "config.json", text_config={"_attn_implementation": "third/kernel"})
    with pytest.raises(ModelError, match="names a kernel") as caught:
        load_model(Place(str(model)), dtype="float32")
    assert caught.value.found == "_attn_implementation = third/kernel"


def test_where_there_is_no_config_nothing_is_refused(tmp_path):
    assert config_of(Place(str(tmp_path))) == {}
