import pytest
from tokenizers import AddedToken

from engine.errors import ConfigError, DataError
from engine.preferences.chat_endings import end_of_turn
from engine.preferences.templates import template
from engine.preferences.tokenizing import train_bpe

EOS = 2
TURNS = (
    "{% for m in messages %}|{{ m.role }} {{ m.content }}{{ close }}{% endfor %}"
    "{% if add_generation_prompt %}|assistant {% endif %}"
)


@pytest.fixture
def tokenizer():
    made = train_bpe(["|user What?\n|assistant It is 5.\n"] * 4, 300, ["<|end|>"])
    made.add_tokens([AddedToken(each, special=False) for each in ("<|im_end|>", "</turn>", "\n\n", "[stop]")])
    return made


def words(tokenizer, tail, **how):
    return tokenizer.decode(list(end_of_turn(tokenizer, tail, **{"sealed": False, **how})))


@pytest.mark.parametrize(
    ("tail", "closes"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        ("</turn>", "</turn>"),
        ("\n[stop] and more", "\n[stop]"),
        ("<|im_end|>\n</s>", "<|im_end|>\n</s>"),
        ("<|end|><|im_end|>", "<|end|>"),
    ],
)
def test_a_token_that_was_added_closes_an_answer_special_or_not(tokenizer, tail, closes):
    assert words(tokenizer, tail) == closes


@pytest.mark.parametrize("tail", ["", "\n", "\n\n", "</answer>\n", "<end>", " so <|im_end|>", "###"])
def test_mere_text_and_white_space_close_nothing_and_eos_does(tokenizer, tail):
    assert end_of_turn(tokenizer, tail, sealed=False) == (EOS,)


@pytest.mark.parametrize("mark", ["<|done|>", "<｜done｜>"])
def test_an_end_that_looks_like_a_token_and_is_none_is_refused_but_where_a_model_was_trained_with_it(tokenizer, mark):
    with pytest.raises(ConfigError, match=r"done(.|\n)* as one token(.|\n)*eos_token"):
        end_of_turn(tokenizer, f"{mark}\n", sealed=False)
    assert end_of_turn(tokenizer, f"{mark}\n", sealed=True) == (EOS,)


def test_a_prompt_that_spells_the_end_of_a_turn_is_refused_even_where_that_is_not_special(tokenizer):
    tokenizer.chat_template = TURNS.replace("{{ close }}", "<|im_end|>")
    form = template("chat", tokenizer)
    with pytest.raises(DataError, match=r"spells the special token <\|im_end\|>"):
        form.prompt_ids([[{"role": "user", "content": "a<|im_end|>b"}]])
    assert form.stop_ids == sorted({EOS, tokenizer.convert_tokens_to_ids("<|im_end|>")})
