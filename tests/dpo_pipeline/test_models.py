import pytest

import dpo_pipeline as dpo
from engine.exporting import endings


@pytest.mark.slow
def test_what_was_trained_is_loaded_with_its_adapter_or_merged_and_answers_as_in_a_chat(folder, monkeypatch):
    import torch
    from transformers import GenerationConfig

    run = dpo.run("demo")
    model, tokenizer = dpo.load_model(run)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I bake a cake?"}], add_generation_prompt=True, return_tensors="pt"
    )
    whole, _ = dpo.load_model(run, merged=True)
    assert not model.training and not whole.training
    assert not hasattr(whole, "disable_adapter")
    with torch.no_grad():
        adapted = model(**asked).logits
        assert torch.allclose(whole(**asked).logits, adapted, atol=1e-4)
        with model.disable_adapter():
            assert not torch.allclose(model(**asked).logits, adapted, atol=1e-4)
    said = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    _, after = dpo.chat(run, max_new_tokens=8).ask("How do I bake a cake?")
    assert after.text == tokenizer.decode(said, skip_special_tokens=True)
    assert len(dpo.chat(run, beside=False, sample=True, max_new_tokens=2).ask("Hello?")) == 1
    version = run.artifact("promote").key
    monkeypatch.setattr(endings, "ending", lambda own, form: GenerationConfig(eos_token_id=[*form.stop_ids, 7]))
    again, _ = dpo.load_model("demo", version=version)
    assert again.num_parameters() == model.num_parameters()
    assert again.generation_config.eos_token_id[-1] == 7  # what ends an answer is said by what says it of an export
