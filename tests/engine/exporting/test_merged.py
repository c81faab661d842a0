import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from engine.errors import ModelError, NumericsError
from engine.exporting.merged import _pairs, write_merged
from engine.preferences.pairs import load_pairs


def test_the_merged_model_loads_by_itself_and_gives_the_numbers_of_the_adapter_on_its_base(finished, tmp_path):
    check, form = write_merged(finished, tmp_path, 5)
    assert check.pairs == 5
    assert check.difference <= check.tolerance
    assert 1e-4 <= check.tolerance < 1e-3
    assert check.judged == pytest.approx(0, abs=1e-3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert model.dtype == torch.float32
    ids = torch.tensor(form.prompt_ids([[{"role": "user", "content": "How do I bake a cake?"}]]))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, finished.open().model(ids).logits, atol=1e-4)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id in (form.stop_ids, form.stop_ids[0])
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_weights_that_were_spoilt_on_their_way_to_the_disk_are_noticed(finished, tmp_path, monkeypatch):
    whole = PreTrainedModel.save_pretrained

    def spoilt(self, folder, **more):
        whole(self, folder, **more)
        weights = load_file(f"{folder}/model.safetensors")
        name = next(name for name in weights if "down_proj" in name)
        save_file(weights | {name: weights[name] * 1.5}, f"{folder}/model.safetensors", {"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoilt)
    with pytest.raises(NumericsError, match="not the adapter on its base") as error:
        write_merged(finished, tmp_path, 4)
    assert "without --merge" in error.value.fix
    assert "of the 4 pairs tried differ" in error.value.found


def test_a_merge_that_leaves_the_adapter_out_is_noticed(finished, tmp_path, monkeypatch):
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(NumericsError):
        write_merged(finished, tmp_path, 4)


def test_a_base_that_is_stored_in_few_bits_is_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "quantization_method", "awq", raising=False)
    with pytest.raises(ModelError, match="quantised"):
        write_merged(finished, tmp_path, 4)


def test_the_longest_pairs_are_among_those_tried_and_none_twice(finished):
    everything = load_pairs(finished.inputs["subsample"].file("eval.parquet"))
    for count in (1, 4, 5, len(everything), 100):
        chosen = _pairs(finished, count)
        assert len({pair.pair_id for pair in chosen}) == len(chosen) == min(count, len(everything))
    assert max(everything, key=lambda pair: pair.length).length == max(pair.length for pair in _pairs(finished, 4))


@pytest.mark.slow
def test_a_model_in_half_precision_stays_in_it_and_is_held_to_its_rounding(world, tmp_path):
    check, _ = write_merged(world.finished("reference.dtype=bfloat16"), tmp_path, 8)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert check.difference <= check.tolerance
    assert 0.1 < check.tolerance < 2
