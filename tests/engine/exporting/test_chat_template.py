from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.exporting.chat_template import chat_template_of
from engine.preferences.templates import template

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.\n"},
    {"role": "user", "content": "Bye 好"},
]


@pytest.fixture
def tokenizer():
    """Bytes, and some special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    words = {word: number for number, word in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(words, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
    )


def written(tokenizer, chat_template, talk=TALK):
    return tokenizer.apply_chat_template(
        talk, chat_template=chat_template, tokenize=True, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("name", ["seed", "plain"])
def test_the_projects_own_templates_are_written_as_jinja(tokenizer, name):
    form = template(name, tokenizer)
    assert written(tokenizer, chat_template_of(form)) == form.prompt_ids([TALK])[0]


def test_the_tokenizers_own_is_kept_where_it_writes_the_same(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    assert chat_template_of(template("chat", tokenizer)) == tokenizer.chat_template


def test_a_bos_that_training_put_in_front_is_put_there_here_too(tokenizer):
    tokenizer.chat_template = CHATML
    form = template("chat", tokenizer)
    found = chat_template_of(form)
    assert written(tokenizer, found) == form.prompt_ids([TALK])[0]
    assert written(tokenizer, CHATML) != form.prompt_ids([TALK])[0]


def test_where_none_writes_the_prompts_there_is_none(tokenizer):
    tokenizer.chat_template = CHATML
    form = template("chat", tokenizer)
    other = SimpleNamespace(
        name="chat", tokenizer=tokenizer, prompt_ids=lambda talks: [[9, *ids] for ids in form.prompt_ids(talks)]
    )
    assert chat_template_of(other) is None


def test_a_template_that_takes_no_second_turn_is_known_by_its_first(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[2:] %}{{ raise_exception('one turn only') }}{% endif %}{{ bos_token }}"
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    assert chat_template_of(template("chat", tokenizer)) == tokenizer.chat_template
