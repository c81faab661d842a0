from types import SimpleNamespace

from transformers import GenerationConfig

from engine.exporting.endings import ending

TOKENIZER = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def form(*stops):
    return SimpleNamespace(stop_ids=list(stops), tokenizer=TOKENIZER)


def test_an_answer_ends_where_evaluation_ends_it_and_the_rest_is_the_models_own():
    found = ending(GenerationConfig(eos_token_id=9, do_sample=True, temperature=0.6), form(2, 5))
    assert (found.eos_token_id, found.bos_token_id, found.pad_token_id) == ([2, 5], 1, 0)
    assert (found.do_sample, found.temperature) == (True, 0.6)
    assert ending(None, form(2)).eos_token_id == 2


def test_settings_that_contradict_each_other_are_dropped_for_they_could_not_be_saved(tmp_path):
    own = GenerationConfig(do_sample=False, temperature=0.6, eos_token_id=9)
    found = ending(own, form(2))
    found.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 2
    assert found.temperature in (None, 1.0)
