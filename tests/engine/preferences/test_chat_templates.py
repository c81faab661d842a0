import copy
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import ConfigError
from engine.preferences import chat_templates
from engine.preferences.chat_templates import (
    NAMED,
    TODAY,
    adopt,
    checked_name,
    chosen,
    control_tokens,
    frozen,
    is_jinja,
    source,
)
from engine.preferences.tokenizing import train_bpe

CLOCK = "Today: {{ strftime_now('%d %b %Y') }}|{{ strftime_now(\"%Y-%m-%d\") }}"
WRITES = "{% for m in messages %}{{ m.content }}{% endfor %}"
TOKENIZER, CLOCKED = train_bpe(iter(["a"]), 300), train_bpe(iter(["a"]), 300)


@pytest.fixture
def tokenizer():
    return copy.deepcopy(TOKENIZER)


def written(tokenizer, content="hi"):
    return tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)


def test_every_name_has_a_file_and_every_file_a_name():
    folder = Path(chat_templates.__file__).with_suffix("")
    assert {path.stem for path in folder.iterdir()} == set(NAMED)
    assert all(f"`{name}`" in chat_templates.__doc__ for name in NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_holds_every_special_token_it_is_said_to_need(name):
    text = source(name)
    for token in NAMED[name]:
        assert token in text or ("'<|' + message['role'] + '|>" in text and token.strip("<|>") in ("system", "user"))


def test_names_and_paths_are_told_apart_and_others_are_refused_with_the_nearest():
    assert [is_jinja(name) for name in ("seed", "plain", "chat", "chatml", "mine.jinja")] == [False] * 3 + [True] * 2
    assert checked_name("~/mine.jinja") == "~/mine.jinja"
    with pytest.raises(ValueError, match=r"seed, plain, chat, chatml.*\.jinja file; did you mean `chatml`\?"):
        checked_name("chatlm")
    with pytest.raises(ValueError, match=r"\.jinja file$"):
        checked_name("值 x")


def test_a_file_that_cannot_be_read_is_a_config_error_with_the_names_there_are(tmp_path):
    (tmp_path / "folder.jinja").mkdir()
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere", "folder", "bytes", "nul\0"):
        with pytest.raises(ConfigError, match=r"no chat template to read(.|\n)*chatml"):
            source(str(tmp_path / f"{name}.jinja"))
    with pytest.raises(ConfigError, match="no chat template to read"):
        source("~nobody-of-that-name/x.jinja")


def test_an_empty_file_is_refused_as_that_and_a_mark_of_byte_order_is_no_text_of_it(tmp_path):
    (tmp_path / "empty.jinja").write_text(" \n\n", "utf-8")
    with pytest.raises(ConfigError, match=r"empty\.jinja` is empty(.|\n)*chatml"):
        source(str(tmp_path / "empty.jinja"))
    (tmp_path / "marked.jinja").write_text(f"{WRITES}\n", "utf-8-sig")
    assert source(str(tmp_path / "marked.jinja")) == WRITES


@pytest.mark.parametrize("name", NAMED)
def test_a_file_with_the_text_of_a_named_template_writes_the_same_tokens_and_needs_them_as_much(
    name, tokenizer, tmp_path
):
    path = tmp_path / "mine.jinja"
    path.write_text(f"{source(name)}\n", "utf-8")
    assert control_tokens(str(path)) == control_tokens(name) == NAMED[name]
    if NAMED[name]:
        with pytest.raises(ConfigError, match=r"mine\.jinja` writes tokens that this tokenizer does not have"):
            adopt(str(path), tokenizer)
    path.write_text(f"{source(name)}{{# mine #}}", "utf-8")
    assert control_tokens(str(path)) == ()


def test_what_is_no_jinja_writes_no_tokens_of_its_own():
    assert [control_tokens(name) for name in ("seed", "plain", "chat")] == [()] * 3


def test_an_adopted_template_is_the_tokenizers_own_and_stays_so_when_saved(tokenizer, tmp_path):
    (tmp_path / "mine.jinja").write_text(f"{WRITES}\n", "utf-8")
    adopt(str(tmp_path / "mine.jinja"), tokenizer)
    assert tokenizer.chat_template == WRITES and written(tokenizer) == "hi"
    adopt("vicuna", tokenizer)
    assert tokenizer.chat_template == source("vicuna")


def test_a_tokenizer_without_a_token_that_the_template_writes_is_refused_with_the_way_out(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    with pytest.raises(ConfigError, match=r"none for <\|im_end\|>(.|\n)*vicuna") as error:
        adopt("chatml", tokenizer)
    assert 'tokenize.template = "chat"' in error.value.fix and tokenizer.chat_template is None


def test_a_token_of_the_vocabulary_that_text_is_never_parsed_into_is_one_that_lacks():
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **dict(zip(NAMED["gemma"], (3, 4), strict=True))}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    split = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    with pytest.raises(ConfigError, match="none for <start_of_turn>, <end_of_turn>"):
        adopt("gemma", split)
    split.add_special_tokens({"additional_special_tokens": list(NAMED["gemma"])})
    adopt("gemma", split)


def test_the_date_is_always_the_same_one_in_every_form_and_freezing_twice_changes_nothing(tokenizer):
    once = frozen(CLOCK, "here")
    tokenizer.chat_template = once
    assert written(tokenizer) == f"Today: {TODAY:%d %b %Y}|{TODAY:%Y-%m-%d}"
    assert frozen(once, "here") == once


def test_a_template_without_a_date_is_left_as_it_is(tokenizer):
    assert frozen(WRITES, "here") is WRITES
    tokenizer.chat_template = {"default": WRITES, "rag": "rag"}
    adopt("chat", tokenizer)
    assert tokenizer.chat_template == {"default": WRITES, "rag": "rag"}


@settings(deadline=None, max_examples=40)
@given(st.text("ab{}%'\"\\\n ", max_size=20))
def test_a_date_in_any_form_stands_still(form):
    form = f"%Y{form}"
    CLOCKED.chat_template = frozen(f"{{{{ strftime_now({form!r}) }}}}x", "here")
    assert written(CLOCKED) == f"{TODAY.strftime(form)}x"


def test_the_tokenizers_own_date_is_frozen_in_all_its_templates_with_a_warning(tokenizer, caplog):
    tokenizer.chat_template = {"default": CLOCK, "rag": WRITES}
    with caplog.at_level(logging.WARNING, logger="dpo"):
        adopt("chat", tokenizer)
        adopt("chat", tokenizer)
    assert f"{TODAY:%Y}" in written(tokenizer) and tokenizer.chat_template["rag"] == WRITES
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    "jinja", ["{% set f = strftime_now %}{{ f('%d') }}", "{% set f = '%d' %}{{ strftime_now(f) }}"]
)
def test_a_date_in_a_form_that_is_not_written_out_is_refused_when_it_is_asked_for(tokenizer, jinja):
    tokenizer.chat_template = frozen(jinja, "here")
    with pytest.raises(Exception, match="in a form that is not written out"):
        written(tokenizer)


def test_a_template_that_is_no_jinja_or_draws_at_random_is_refused_with_its_place(tokenizer, tmp_path):
    for text, problem in ((f"{WRITES}\n{{% if %}}", r"line 2"), ("{{ [1, 2] | random }}", "at random")):
        (tmp_path / "bad.jinja").write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=rf"{problem}(.|\n)*bad\.jinja"):
            adopt(str(tmp_path / "bad.jinja"), tokenizer)


def test_the_block_around_what_the_assistant_says_is_understood(tokenizer):
    jinja = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    tokenizer.chat_template = frozen(jinja + "{{ strftime_now('%Y') }}", "here")
    assert written(tokenizer) == f"hi{TODAY:%Y}"


def test_of_several_templates_the_default_is_taken_and_without_one_they_are_named(tokenizer):
    tokenizer.chat_template = {"default": "a", "rag": "b"}
    assert chosen(tokenizer) == "a"
    tokenizer.chat_template = {"tool_use": "a", "rag": "b"}
    with pytest.raises(ConfigError, match=r"found: rag, tool_use(.|\n)*\.jinja"):
        chosen(tokenizer)


def test_a_tokenizer_without_a_template_is_refused_with_the_other_ways(tokenizer):
    with pytest.raises(ConfigError, match=r'no chat template(.|\n)*"plain"(.|\n)*"chatml"'):
        chosen(tokenizer)
