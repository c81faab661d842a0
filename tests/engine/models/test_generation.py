from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

from engine.errors import ModelError
from engine.models.generation import (
    GREEDY,
    PRESETS,
    SEED,
    Generation,
    GenerationSettings,
    _Draw,
    _left_padded,
    generate,
)

CONTEXT = 32
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17], [12], [18, 19, 20, 21, 22, 23, 24, 25], [27, 28, 29]]


def llama(**overrides: Any) -> Any:
    # Larger initial weights than usual: the answers of a small model would otherwise be one token again and again.
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.6,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(sizes | overrides)))


def gpt2() -> Any:
    """A model whose positions are learned, so that a wrong one changes everything."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.6))


def adapted() -> Any:
    return get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def answers(model: Any, prompts: list[list[int]] = PROMPTS, **changes: Any) -> list[Generation]:
    arguments = {
        "settings": GenerationSettings(max_new_tokens=8),
        "seed": 0,
        "batch_size": 3,
        "pad_id": 0,
        "eos_ids": 2,
        "device": "cpu",
    }
    return generate(model, prompts, **(arguments | changes))


@torch.no_grad()
def greedily(model: Any, prompt: list[int], count: int) -> list[int]:
    """The plainest greedy search: no batch, no padding, no cache."""
    model.eval()
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("made", [llama, gpt2, adapted])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_greedy_answers_are_those_of_one_prompt_alone_in_the_order_given(made, batch_size) -> None:  # type: ignore[no-untyped-def]
    model = made()
    alone = [greedily(model, prompt, 8) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in alone}) > 4
    assert [each.ids for each in answers(model, batch_size=batch_size, eos_ids=[])] == alone


def test_padding_brings_a_row_no_id_that_a_repetition_penalty_could_weigh_down() -> None:
    seen: list[tuple[set[int], ...]] = []

    class Spy(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(set(row.tolist()) for row in input_ids))
            return scores

    batch = _left_padded([[5, 6, 7], [8], [9, 2]], "cpu")
    llama().generate(**batch, logits_processor=LogitsProcessorList([Spy()]), max_new_tokens=1)
    assert seen == [({5, 6, 7}, {8}, {9, 2})]


@pytest.mark.parametrize("batch_size", [2, 100])
def test_a_repetition_penalty_gives_the_same_answers_in_any_batch(batch_size: int) -> None:
    settings = GenerationSettings(max_new_tokens=12, repetition_penalty=3.0)
    model = llama()
    alone = answers(model, settings=settings, batch_size=1)
    assert alone != answers(model, settings=GenerationSettings(max_new_tokens=12), batch_size=1)
    assert answers(model, settings=settings, batch_size=batch_size) == alone


def test_the_first_eos_ends_an_answer_and_is_not_in_it() -> None:
    model = llama()
    whole = greedily(model, PROMPTS[0], 8)
    end = whole[4]
    assert answers(model, [PROMPTS[0]], eos_ids=end) == [Generation(whole[: whole.index(end)], ended=True)]


def test_any_of_several_eos_ids_ends_an_answer() -> None:
    model = llama()
    whole = greedily(model, PROMPTS[0], 8)
    ends = [whole[5], whole[3]]
    first = min(map(whole.index, ends))
    assert answers(model, [PROMPTS[0]], eos_ids=ends) == [Generation(whole[:first], ended=True)]


def test_an_answer_that_was_cut_off_did_not_end() -> None:
    ends = set(range(64)) - {token for prompt in PROMPTS for token in greedily(llama(), prompt, 8)}
    assert not any(each.ended or len(each.ids) != 8 for each in answers(llama(), eos_ids=min(ends)))


def test_a_generated_id_that_equals_padding_is_kept() -> None:
    model = llama()
    whole = greedily(model, PROMPTS[0], 8)
    assert answers(model, [PROMPTS[0], [12]], pad_id=whole[2], eos_ids=[])[0].ids == whole


def test_padding_after_the_end_of_a_short_answer_is_dropped() -> None:
    model = llama()
    alone = [greedily(model, prompt, 8) for prompt in PROMPTS]
    end = alone[0][1]
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in alone]
    assert len({len(ids) for ids in expected}) > 1
    for pad_id in (0, end, None):
        found = answers(model, pad_id=pad_id, eos_ids=end, batch_size=len(PROMPTS))
        assert [each.ids for each in found] == expected


def test_sampling_is_the_same_for_any_batch_size_and_another_for_another_seed() -> None:
    model = llama(initializer_range=0.2)
    one, two, many = (answers(model, settings=SEED, batch_size=size) for size in (1, 2, 100))
    assert one == two == many
    assert answers(model, settings=SEED, seed=1) != one


def test_the_same_prompt_twice_is_sampled_twice() -> None:
    first, second = answers(llama(initializer_range=0.2), [[12], [12]], settings=SEED)
    assert first != second


def test_sampling_leaves_the_global_rng_alone_and_does_not_listen_to_it() -> None:
    model = llama(initializer_range=0.2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = answers(model, settings=SEED)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert answers(model, settings=SEED) == first


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    numbers = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = _Draw(numbers)(torch.zeros(0), scores.expand(20_000, -1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 20_000
    assert shares[1] == 0
    assert torch.allclose(shares, scores.exp(), atol=0.015)


def test_every_token_is_drawn_with_a_number_of_its_own() -> None:
    draw = _Draw(torch.tensor([[0.1, 0.6, 0.9], [0.3, 0.1, 0.1]], dtype=torch.float64))
    drawn = [draw(torch.zeros(0), torch.zeros(2, 4)).argmax(-1).tolist() for _ in range(3)]
    assert drawn == [[0, 1], [2, 0], [3, 0]]


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_an_id_of_no_probability_is_never_drawn(number: float) -> None:
    scores = torch.tensor([[-torch.inf, 0.3, -torch.inf, 2.0, -torch.inf]])
    drawn = _Draw(torch.tensor([[number]], dtype=torch.float64))(torch.zeros(0), scores).argmax(-1)
    assert drawn.item() in (1, 3)


def test_the_smallest_nucleus_is_greedy() -> None:
    nucleus = GenerationSettings(max_new_tokens=8, do_sample=True, top_p=1e-6)
    assert answers(llama(), settings=nucleus, seed=5) == answers(llama())


@pytest.mark.parametrize("made", [llama, adapted])
def test_the_models_own_generation_defaults_are_neither_used_nor_lost(made) -> None:  # type: ignore[no-untyped-def]
    model = made()
    expected = answers(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = GenerationConfig(repetition_penalty=3.0, no_repeat_ngram_size=1, suppress_tokens=[*range(40)], max_length=4)
    base.generation_config = own
    assert answers(model) == expected
    assert base.generation_config is own
    assert model.generation_config is own


def test_modes_come_back_module_by_module_and_dropout_sleeps_meanwhile() -> None:
    model = llama(attention_dropout=0.9)
    expected = [greedily(model, prompt, 8) for prompt in PROMPTS]
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert [each.ids for each in answers(model, eos_ids=[])] == expected
    assert [module.training for module in model.modules()] == before


def test_modes_and_defaults_come_back_after_a_failure() -> None:
    model = llama().train()
    own = model.generation_config
    model.forward = None
    with pytest.raises(TypeError):
        answers(model)
    assert model.training
    assert model.generation_config is own


def test_a_model_can_be_trained_after_it_was_asked() -> None:
    model = adapted().train()
    answers(model)
    ids = torch.tensor([PROMPTS[0]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("made", [llama, gpt2])
def test_a_long_prompt_gets_the_room_that_is_left_and_its_neighbours_get_theirs(made) -> None:  # type: ignore[no-untyped-def]
    model = made()
    long, short = [3 + place % 40 for place in range(CONTEXT - 3)], [12, 13]
    found = [each.ids for each in answers(model, [long, short, long], eos_ids=[])]
    assert found == [greedily(model, long, 3), greedily(model, short, 8), greedily(model, long, 3)]


@pytest.mark.parametrize(("prompt", "says"), [([5] * CONTEXT, "no room"), ([5] * 99, "no room"), ([], "empty")])
def test_a_prompt_that_cannot_be_continued_is_refused_by_its_place(prompt: list[int], says: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s){says}.*prompt 1"):
        answers(llama(), [[5], prompt])


def test_progress_counts_prompts_up_to_all_of_them_and_the_tokens_of_their_answers() -> None:
    heard: list[tuple[int, int]] = []
    said = answers(llama(), progress=lambda done, tokens: heard.append((done, tokens)))
    assert [done for done, _ in heard] == [0, 3, 6, 7]
    assert heard[0][1] == 0
    assert sum(tokens for _, tokens in heard) == sum(len(each.ids) for each in said) > 0


def test_no_prompt_gives_no_answer() -> None:
    assert answers(llama(), []) == []


def test_the_presets_are_greedy_and_the_seeds() -> None:
    assert PRESETS == {"greedy": GREEDY, "seed": SEED}
    assert not GREEDY.do_sample
    assert (SEED.do_sample, SEED.top_p, SEED.temperature, SEED.repetition_penalty) == (True, 0.9, 0.7, 1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0)],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="impossible generation settings"):
        GenerationSettings(**{name: value})
