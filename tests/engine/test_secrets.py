import json
import logging
import shlex
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.secrets import Redacting, outgoing, redact, redacted, visible

SECRET = "s3cr3t-with'quotes\"and/ä"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", SECRET)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PREFECT_API_KEY", "X_SECRET", "db_password", "PASSWORD"]
)
def test_what_the_environment_keeps_under_a_secret_name_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "abcd1234efgh")
    assert redact("it said abcd1234efgh!") == "it said ***!"


@pytest.mark.parametrize(("name", "value"), [("HF_TOKEN", "short"), ("TOKENIZERS_PARALLELISM", "abcd1234efgh")])
def test_short_values_and_other_names_are_no_secrets(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"it said {value}!") == f"it said {value}!"


@pytest.mark.parametrize("write", [str, json.dumps, repr, shlex.quote, lambda text: quote(text, safe="")])
def test_a_secret_is_found_as_others_write_it(write) -> None:
    shown = redact(f"a {write(SECRET)} b")
    assert "s3cr3t" not in shown and "***" in shown


def test_the_longer_of_two_secrets_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "12345678")
    monkeypatch.setenv("B_TOKEN", "1234567890")
    assert redact("1234567890") == "***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa55@host/x", "https://***@host/x"),
        ("http://user:p@ss@host:80/x?y=1", "http://***@host:80/x?y=1"),
        ("https://justatoken@host", "https://***@host"),
        ("https://host/a@b and me@host", "https://host/a@b and me@host"),
        ("hf_abcdefghijklmnopqrstuv.", "***."),
        ("key=sk-abcdefghijklmnop_-1234", "key=***"),
        ("half_life, hf_hub, risk-averse, sk-learn", "half_life, hf_hub, risk-averse, sk-learn"),
    ],
)
def test_credentials_of_urls_and_tokens_of_a_known_shape_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_everything_in_a_value_is_redacted_and_nothing_else_changes() -> None:
    value = {"a": [SECRET, 1, None, (True, 0.5)], SECRET: {"b": f"<{SECRET}>"}}
    assert redacted(value) == {"a": ["***", 1, None, [True, 0.5]], "***": {"b": "<***>"}}


@given(st.text(st.characters(min_codepoint=32, exclude_characters="@_-")))
def test_text_without_secrets_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(st.characters()))
def test_nothing_that_goes_out_acts_on_a_terminal(text: str) -> None:
    shown = outgoing(text)
    assert shown.encode("utf-8").decode("utf-8").count("\n") == text.count("\n")
    assert not set(shown) & {*map(chr, (*range(10), *range(11, 32), *range(0x7F, 0xA0), *range(0x202A, 0x202F)))}
    assert len(visible(text + "x").splitlines()) == 1


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("dpo", logging.INFO, __file__, 1, message, arguments, None)


def test_a_log_record_is_redacted_with_its_arguments_and_its_traceback() -> None:
    told = record("with %s", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError:
        told.exc_info = sys.exc_info()
    assert Redacting().filter(told)
    written = logging.Formatter().format(told)
    assert "s3cr3t" not in written and "with ***" in written and "ValueError: ***" in written


def test_an_ordinary_log_record_keeps_its_arguments() -> None:
    told = record("step %d of %d", 1, 2)
    assert Redacting().filter(told) and told.args == (1, 2)
