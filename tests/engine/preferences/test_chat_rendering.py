import sys

import pytest

from engine.errors import DataError
from engine.preferences import chat_rendering
from engine.preferences.chat_rendering import render, tried
from engine.preferences.tokenizing import train_bpe

TOKENIZER = train_bpe(iter(["a"]), 300)
ASKED = [{"role": "user", "content": "Why?"}]
DEEP = "{% for i in [1] %}" * 25 + "{% endfor %}" * 25
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def refusal(jinja, way=render):
    with pytest.raises(DataError, match="the chat template refuses these messages") as error:
        way(TOKENIZER, jinja, ASKED, header=True)
    return error.value


def test_a_template_writes_messages_with_and_without_the_header():
    jinja = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %} >{% endif %}"
    assert [render(TOKENIZER, jinja, ASKED, header=header) for header in (True, False)] == ["<s>Why? >", "<s>Why?"]
    assert tried(TOKENIZER, jinja, ASKED, header=True) == "<s>Why? >"


def test_what_a_template_refuses_in_its_own_words_is_for_the_messages_to_mend():
    error = refusal("{{ raise_exception('no system here') }}")
    assert (error.found, error.fix) == ("no system here", "")


@pytest.mark.parametrize(
    ("jinja", "found"),
    [
        ("{% set n = 10 %}{{ 'a' * (n*n*n*n*n*n*n*n*n*n*n*n*n*n*n) }}", "MemoryError in the template"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'a' %}", "loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ 1 / 0 }}", "zero"),
        (DEEP, "nested"),
    ],
)
def test_what_fails_in_a_template_is_for_the_template_to_mend_and_no_traceback(jinja, found):
    error = refusal(jinja)
    assert found in error.found and "mend the template" in error.fix


def test_a_trial_that_takes_too_long_is_stopped_and_leaves_the_tracing_as_it_was(monkeypatch):
    monkeypatch.setattr(chat_rendering, "TRIAL_SECONDS", 0.2)
    before = sys.gettrace()
    error = refusal(ENDLESS, tried)
    assert "took it more than 0.2 s" in error.found and "no loops but over the messages" in error.fix
    assert sys.gettrace() is before
    assert tried(TOKENIZER, "a", ASKED, header=True) == "a" and sys.gettrace() is before
