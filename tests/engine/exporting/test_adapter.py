import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from engine.errors import ConfigError
from engine.exporting.adapter import Belonging, belonging, belonging_on_base, save_tokenizer, template_of, write_adapter
from engine.models import loading

COMMIT = "c" * 40


def given(finished, changed, name, revision="main"):
    """The model with a policy that was given."""
    model = finished.model.model_copy(update={"policy": str(name), "policy_revision": revision})
    inputs = {stage: artifact for stage, artifact in finished.inputs.items() if stage != "sft"}
    return changed(finished, model=model, inputs=inputs)


def test_an_adapter_on_a_policy_that_was_made_here_takes_it_along_and_gives_the_same_numbers(finished, tmp_path):
    base = belonging(finished, portable=False)
    assert base == Belonging("policy", beside=True)
    form = write_adapter(finished, tmp_path, base)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    model = PeftModel.from_pretrained(policy, str(tmp_path)).eval()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "policy"
    subject = finished.open()
    ids = torch.tensor(form.prompt_ids([[{"role": "user", "content": "How do I bake a cake?"}]]))
    with torch.no_grad():
        theirs, ours = model(ids).logits, subject.model(ids).logits
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, ours, atol=1e-5)  # the adapter does something
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert GenerationConfig.from_pretrained(tmp_path / "policy").eos_token_id in (form.stop_ids, form.stop_ids[0])


def test_its_tokenizer_writes_the_prompts_that_it_was_trained_on(finished, tmp_path):
    form = template_of(finished)
    before = form.tokenizer.chat_template
    assert save_tokenizer(form, tmp_path)
    assert form.tokenizer.chat_template == before
    talk = [{"role": "user", "content": "How do I bake a cake?"}]
    found = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(talk, add_generation_prompt=True)
    assert found["input_ids"] == form.prompt_ids([talk])[0]


def test_a_whole_model_on_the_hub_is_named_with_its_commit(finished, changed, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(tmp_path))
    hub = given(finished, changed, "org/policy", COMMIT)
    base = belonging(hub, portable=True)
    assert base == Belonging("org/policy", COMMIT)
    assert base.words == f"org/policy at commit {COMMIT}"
    write_adapter(finished, tmp_path / "out", base)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/policy", COMMIT)
    assert not (tmp_path / "out" / "policy").exists()


def test_an_adapter_that_was_given_is_no_base_so_the_merged_policy_goes_along(finished, changed, monkeypatch, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert belonging(given(finished, changed, "org/adapter", COMMIT), portable=False).beside


@pytest.mark.parametrize("portable", [False, True])
def test_a_policy_in_a_folder_is_named_by_its_path_or_copied_where_the_export_leaves(
    finished, changed, tmp_path, portable
):
    folder = Path(finished.inputs["sft"].file("policy"))
    local = given(finished, changed, folder)
    base = belonging(local, portable=portable)
    assert base == (Belonging("policy", beside=True) if portable else Belonging(str(folder.resolve())))
    write_adapter(local, tmp_path / "out", base)
    copied = tmp_path / "out" / "policy" / "model.safetensors"
    assert copied.is_file() == portable
    assert not portable or copied.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_what_lies_beside_a_policy_in_a_folder_does_not_leave_with_it(finished, changed, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(finished.inputs["sft"].file("policy"), folder, copy_function=shutil.copyfile)
    for name in (".env", "optimizer.pt", "hf_token"):
        (folder / name).write_text("secret")
    (folder / "own.py").write_text("")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    local = given(finished, changed, folder)
    write_adapter(local, tmp_path / "out", belonging(local, portable=True))
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not left & {".env", "optimizer.pt", "hf_token", "own.py"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")


def test_where_the_policy_cannot_be_copied_it_is_opened_and_saved_whole(finished, changed, monkeypatch, tmp_path):
    from engine.exporting import adapter

    saved = []
    opened = SimpleNamespace(save_pretrained=lambda folder: saved.append(Path(folder).mkdir(parents=True)))
    monkeypatch.setattr(adapter, "open_policy", lambda *_, **how: opened)
    write_adapter(given(finished, changed, tmp_path), tmp_path / "out", Belonging("policy", beside=True))
    assert saved == [None]


@pytest.fixture
def continued(finished, changed, tmp_path):
    """The model as if its training had gone on with the SFT's adapter, on a base of some name."""

    def make(name, **payload):
        (tmp_path / "train" / "continued").mkdir(parents=True)
        (tmp_path / "train" / "continued" / "adapter_config.json").write_text(json.dumps({"r": 77}))
        sft = SimpleNamespace(manifest={"payload": {"sources": payload}})
        model = finished.model.model_copy(update={"name": str(name)})
        lent = {"train": SimpleNamespace(path=tmp_path / "train")}
        return changed(finished, model=model, inputs={**finished.inputs, "sft": sft}, lent=lent)

    return make


def test_an_adapter_that_went_on_from_the_sfts_is_exported_for_the_base_at_the_commit_it_was_trained_on(
    continued, tmp_path
):
    model = continued("org/base", base=f"org/base@{COMMIT}")
    base = belonging_on_base(model, portable=True)
    assert base == Belonging("org/base", COMMIT)
    write_adapter(model, tmp_path / "out", base, on_base=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config == {"r": 77, "base_model_name_or_path": "org/base", "revision": COMMIT}


def test_a_base_in_a_folder_is_named_by_its_path_and_cannot_be_pushed(continued, tmp_path):
    (tmp_path / "base").mkdir()
    model = continued(tmp_path / "base")
    assert belonging_on_base(model, portable=False) == Belonging(str(tmp_path / "base"))
    with pytest.raises(ConfigError, match="nobody else finds it"):
        belonging_on_base(model, portable=True)


def test_where_there_is_no_adapter_on_the_base_it_is_said_why(finished, changed):
    for model in (finished, changed(finished, lent={})):
        with pytest.raises(ConfigError, match="has no adapter on the base") as error:
            belonging_on_base(model, portable=False)
        assert "--merge" in error.value.fix


@pytest.mark.slow
def test_the_adapter_on_the_base_and_the_one_on_the_policy_are_the_same_model(world, finished, tmp_path):
    base = str(finished.inputs["sft"].file("policy"))
    went_on = world.finished(
        f"model.name={base}", "sft.method=lora", "sft.lora.rank=2", "sft.lora.alpha=8", "train.lora.start=sft"
    )
    form = write_adapter(went_on, tmp_path, belonging_on_base(went_on, portable=False), on_base=True)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path)).eval()
    ids = torch.tensor(form.prompt_ids([[{"role": "user", "content": "How do I bake a cake?"}]]))
    with torch.no_grad():
        wanted = went_on.open().model(ids).logits
        assert torch.allclose(model(ids).logits, wanted, atol=1e-4)
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, wanted, atol=1e-3)
