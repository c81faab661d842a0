import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from engine.answering import Answer, answer
from engine.models.generation import GenerationSettings, generate
from engine.preferences.templates import template
from engine.preferences.tokenizing import train_bpe

QUESTIONS = ["How do I bake a cake?", "How?", "How do I wash a shirt, and a car, and a boat?"]
SHORT = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def form():
    return template("plain", train_bpe(["User:\nHow do I bake a cake?\nAssistant:\nTake a bowl."] * 3, 300))


@pytest.fixture(scope="module")
def model(make_llama, form):
    return make_llama(vocab_size=len(form.tokenizer), max_position_embeddings=256)


def answers(model, form, questions=QUESTIONS, **changes):
    arguments = {
        "settings": SHORT, "max_prompt_length": 40, "seed": 0, "batch_size": 2, "device": torch.device("cpu"),
    }  # fmt: skip
    return answer(model, form, questions, **(arguments | changes))


def test_a_question_is_asked_as_the_training_pairs_were_written(model, form):
    ids = [form.cut_prompt(ids, 40) for ids in form.prompt_ids([[{"role": "user", "content": q}] for q in QUESTIONS])]
    assert [len(each) for each in ids][2] == 40  # cut as a pair's prompt is
    expected = generate(model, ids, settings=SHORT, seed=0, batch_size=3, pad_id=0, eos_ids=form.stop_ids, device="cpu")
    found = answers(model, form)
    assert [(said.tokens, said.ended) for said in found] == [(len(said.ids), said.ended) for said in expected]
    assert [list(said.ids) for said in found] == [said.ids for said in expected]
    assert [list(said.prompt_ids) for said in found] == ids
    decode = form.tokenizer.decode
    assert [said.text for said in found] == [decode(said.ids, skip_special_tokens=True) for said in expected]


def test_an_answer_ends_at_the_templates_end_and_shows_no_special_token(model, form, monkeypatch):
    eos, word = form.end_ids[-1], form.tokenizer("bowl", add_special_tokens=False)["input_ids"][0]

    def forward(input_ids, **_):
        """Says one word and stops."""
        logits = torch.zeros(*input_ids.shape, len(form.tokenizer))
        logits[:, -1, eos if input_ids[0, -1] == word else word] = 9.0
        return CausalLMOutput(logits=logits)

    monkeypatch.setattr(model, "forward", forward)
    [said] = answers(model, form, ["How?"])
    assert (said.text, said.tokens, said.ended) == (form.tokenizer.decode([word]), 1, True)


def test_progress_counts_the_questions(model, form):
    told = []
    said = answers(model, form, progress=lambda done, tokens: told.append((done, tokens)))
    assert [done for done, _ in told] == [0, 2, 3]
    assert sum(tokens for _, tokens in told) == sum(each.tokens for each in said)


def test_a_question_that_the_template_cannot_write_stays_unanswered_and_is_told(model, form, caplog):
    tokenizer = form.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}User: {{ m.content[:30] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    chat = template("chat", tokenizer)
    spelling, long, fine = answers(model, chat, ["How </s>?", "How " * 20, "How?"])
    assert (spelling, long) == (Answer("", 0, False), Answer("", 0, False))
    assert fine == answers(model, chat, ["How?"])[0] and fine.prompt_ids
    [told] = caplog.messages
    assert told.startswith("2 prompts cannot be asked") and "spells the special token" in told
    assert answers(model, chat, ["</s>"]) == [spelling]


def test_of_no_questions_there_are_no_answers(model, form):
    assert answers(model, form, []) == []
