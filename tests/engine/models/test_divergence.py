import re

import pytest
import torch

from engine.errors import NumericsError
from engine.models import divergence
from engine.models.divergence import answer_kl
from engine.models.fused_lora import fuse_lora
from engine.models.lora import Lora, add_lora

PROMPTS = [[1, 5, 6], [7, 8, 9, 10, 11], [12], [13, 14], [15, 16, 17]]
ANSWERS = [[20, 21], [22], [], [23, 24, 25, 26], [27, 2]]
ENDED = [True, False, True, False, True]


def divergences(model, **changes):
    arguments = {"batch_size": 2, "pad_id": 0, "device": "cpu"}
    return answer_kl(model, PROMPTS, ANSWERS, ENDED, **(arguments | changes))


@torch.no_grad()
def plainly(model):
    """No batch, no padding, all logits, float64."""
    found = []
    for prompt, answer, ended in zip(PROMPTS, ANSWERS, ENDED, strict=True):
        ids = torch.tensor([prompt + answer])
        p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        with model.disable_adapter():
            q = model(input_ids=ids).logits[0].double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        positions = range(len(prompt) - 1, len(prompt) - 1 + len(answer) + ended)
        found.append(sum(float(kl[at]) for at in positions) / len(positions))
    return found


@pytest.fixture
def adapted(make_model, adapt):
    return adapt(make_model("llama"))


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "gemma2", "granite", "cohere", "phi", "mistral"])
@pytest.mark.parametrize("head", ["module", "model"])
def test_it_is_the_plain_sum_over_the_vocabulary_at_every_position_that_chose_something(make_model, adapt, name, head):
    model = adapt(make_model(name))
    expected = plainly(model)
    assert divergences(model, head=head) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert min(expected) > 1e-4  # else it would prove nothing


def test_an_adapted_head_counts_on_its_side_only(make_model, adapt):
    model = adapt(make_model("llama"), targets=["q_proj", "lm_head"])
    assert divergences(model) == pytest.approx(plainly(model), rel=1e-4, abs=1e-6)


def test_fused_layers_change_nothing(adapted):
    expected = plainly(adapted)
    fuse_lora(adapted)
    assert divergences(adapted) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_fresh_adapter_is_at_no_distance(make_model):
    fresh = add_lora(make_model("llama"), Lora(4, 8.0, 0.0, "all-linear"), seed=5, base_name="zoo")
    assert divergences(fresh) == [0.0] * 5


def test_neither_the_batch_size_nor_the_chunks_nor_the_padding_id_change_it(adapted, monkeypatch):
    expected = divergences(adapted)
    assert divergences(adapted, batch_size=1) == pytest.approx(expected, rel=1e-5)
    assert divergences(adapted, batch_size=5, pad_id=None) == pytest.approx(expected, rel=1e-5)
    assert divergences(adapted, batch_size=5, pad_id=20) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(divergence, "_ELEMENTS", 1)
    assert divergences(adapted, batch_size=5) == pytest.approx(expected, rel=1e-5)


def test_logits_are_never_there_for_more_than_a_chunk(adapted, monkeypatch):
    monkeypatch.setattr(divergence, "_ELEMENTS", 3 * adapted.config.vocab_size)
    sizes = []
    adapted.get_output_embeddings().register_forward_hook(lambda *call: sizes.append(len(call[-1])))
    divergences(adapted, batch_size=5)
    assert max(sizes) == 3
    assert sum(sizes) == 2 * sum(len(answer) + ended for answer, ended in zip(ANSWERS, ENDED, strict=True))


def test_nothing_is_left_behind(adapted):
    adapted.train()
    adapted.base_model.model.lm_head.eval()
    modes = [module.training for module in adapted.modules()]
    before = plainly(adapted)
    for value in adapted.parameters():
        value.requires_grad_(False)
    state = torch.get_rng_state()
    divergences(adapted)
    assert [module.training for module in adapted.modules()] == modes
    assert not any(value.requires_grad for value in adapted.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert plainly(adapted) == before


@pytest.mark.parametrize(("worth", "word"), [(float("nan"), "nan"), (float("inf"), "nan|inf")])
@torch.no_grad()
def test_a_distance_that_is_no_number_is_an_error_that_names_the_answer(adapted, worth, word):
    adapted.get_input_embeddings().weight[24] = worth  # a token of the fourth answer alone
    with pytest.raises(NumericsError, match=r"answer 4, in the order of the prompts") as caught:
        divergences(adapted)
    assert re.fullmatch(word, caught.value.found)


def test_progress_counts_the_answers_and_of_none_there_is_nothing(adapted):
    told = []
    divergences(adapted, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert answer_kl(adapted, [], [], [], batch_size=2, pad_id=0, device="cpu") == []
