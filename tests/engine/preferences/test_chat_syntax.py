import pytest

from engine.errors import ConfigError
from engine.preferences.chat_syntax import parsed

WRITES = "{% for m in messages %}{{ m.content * 2 }}{% endfor %}{% for i in range(3 * 4) %}{{ eos_token }}{% endfor %}"


def test_a_template_is_told_with_the_names_that_it_takes_from_outside():
    _, given = parsed(WRITES + "{{ strftime_now('%d') }}", "here")
    assert given == {"messages", "eos_token", "strftime_now"}


@pytest.mark.parametrize(
    ("jinja", "what"),
    [
        ("{{ [1, 2] | random }}", "`random`"),
        ("{{ [[1, 2]] | map('random') | first }}", "`random`"),
        ("{% filter random %}ab{% endfilter %}", "`random`"),
        ("{{ lipsum(1) }}", "`lipsum`"),
        ("{% set words = lipsum %}{{ words() }}", "`lipsum`"),
    ],
)
def test_what_draws_at_random_is_refused_and_named(jinja, what):
    with pytest.raises(ConfigError, match=rf"draws at random(.|\n)*where: here\n  fix: take .*{what} out of it"):
        parsed(WRITES + jinja, "here")


@pytest.mark.parametrize(
    ("jinja", "what"),
    [
        ("{{ 10**10**9 % 7 }}", r"\*\*"),
        ("\n{{ ('a' * 10 ** 12) | length }}", r"line 2"),
        ("{{ 'a' * 100001 }}", "100001"),
        ("{{ 100001 * 'a' }}", "100001"),
        ("{{ 'a' * 100000 * 100000 }}", "10000000000"),
    ],
)
def test_what_may_take_all_time_and_memory_is_refused_before_it_is_worked_out(jinja, what):
    with pytest.raises(ConfigError, match=rf"all time and memory(.|\n)*{what}"):
        parsed(WRITES + jinja, "here")


def test_what_is_no_jinja_is_refused_with_its_line_and_its_place():
    with pytest.raises(ConfigError, match=r"not Jinja(.|\n)*line 2(.|\n)*where: here"):
        parsed("a\n{% if %}", "here")


def test_the_block_around_what_the_assistant_says_and_breaks_in_loops_are_jinja():
    parsed("{% for m in messages %}{% generation %}a{% endgeneration %}{% break %}{% endfor %}", "here")
