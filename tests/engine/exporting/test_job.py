import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import ConfigError, MissingInputError, NumericsError, TransientError
from engine.exporting import job, merged
from engine.exporting.job import Wish, check_wish, export


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("whole", [False, True])
def test_the_code_on_its_card_runs_in_its_folder_and_the_model_answers(
    finished, tmp_path, monkeypatch, python_blocks, whole
):
    made = export(finished, Wish(tmp_path / "out", merged=whole, pairs=4))
    monkeypatch.chdir(tmp_path / "out")
    [code] = python_blocks((tmp_path / "out" / "README.md").read_text("utf-8"))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(code, {})  # it is what the card asks its reader to do
    assert told.getvalue()
    assert made.as_dict()["kind"] == ("merged" if whole else "adapter")
    assert (made.check is not None) == whole
    assert made.bytes > Path("README.md").stat().st_size
    assert json.loads((tmp_path / "out" / "export.json").read_text())["verdict"] == finished.verdict


def test_no_path_of_this_machine_and_no_time_leaves_with_it(finished, tmp_path, world):
    for whole in (False, True):
        export(finished, Wish(tmp_path / str(whole), merged=whole, pairs=2, push=""))
        for path in (tmp_path / str(whole)).rglob("*"):
            assert path.is_dir() or str(world.root).encode() not in path.read_bytes()


def test_a_check_that_fails_leaves_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.proof.tolerance", lambda *_: -1.0)
    with pytest.raises(NumericsError):
        export(finished, Wish(tmp_path / "out", merged=True, pairs=2))
    assert names(tmp_path) == []


def test_scores_go_beside_and_never_onto_the_hub(finished, tmp_path):
    pushed = []
    publisher = SimpleNamespace(push=lambda folder, told, leave: pushed.append((folder, told, leave)) or "address")
    made = export(finished, Wish(tmp_path / "out", scores="parquet", push="me/mine"), publisher)
    assert names(tmp_path / "out" / "scores") == ["eval.parquet", "train.parquet"]
    assert pushed == [(tmp_path / "out", f"Adapter of {finished.name}", ("scores/*",))]
    assert made.address == "address"
    assert any("not pushed" in note for note in made.notes)
    assert "hf download me/mine" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_what_cannot_be_pushed_is_kept(finished, tmp_path):
    def push(*_, **__):
        raise TransientError("the Hub did not answer")

    with pytest.raises(TransientError):
        export(finished, Wish(tmp_path / "out", push="me/mine"), SimpleNamespace(push=push))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_an_adapter_on_the_base_that_is_not_there_leaves_nothing(finished, tmp_path):
    with pytest.raises(ConfigError, match="no adapter on the base"):
        export(finished, Wish(tmp_path / "out", on_base=True))
    assert names(tmp_path) == []


def test_scores_that_are_not_there_are_missed_before_anything_is_written(finished, changed, tmp_path):
    with pytest.raises(MissingInputError):
        export(changed(finished, lent={}), Wish(tmp_path / "out", scores="jsonl"))
    assert names(tmp_path) == []


def test_who_trained_on_few_bits_is_told_what_that_means(finished, changed, tmp_path, monkeypatch):
    few = changed(finished, how={**finished.how, "quantization": "4bit"})
    adapter = export(few, Wish(tmp_path / "adapter"))
    assert any("trained on 4bit weights" in note for note in adapter.notes)
    whole = export(few, Wish(tmp_path / "whole", merged=True, pairs=2))  # no CUDA: so it is merged into the full ones
    [note] = whole.notes
    assert "judged on 4bit weights" in note
    assert "nats on a pair" in note
    assert "4bit" in (tmp_path / "whole" / "README.md").read_text("utf-8")


def test_a_template_that_the_tokenizer_cannot_write_is_told(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "chat_template_of", lambda form: None)
    made = export(finished, Wish(tmp_path / "out"))
    assert "no chat template" in made.notes[0]
    assert "apply_chat_template" not in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_wish_that_cannot_be_granted_is_refused_before_a_model_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot go there"):
        check_wish(Wish(tmp_path))
    with pytest.raises(ConfigError, match="--public"):
        check_wish(Wish(tmp_path / "out", public=True))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token"):
        check_wish(Wish(tmp_path / "out", push="me/mine"))
    assert check_wish(Wish(tmp_path / "out")) is None
    assert Wish(tmp_path).pairs == merged.PAIRS
