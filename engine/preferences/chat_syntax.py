"""The Jinja of a chat template, read and not run: whether it is any, and whether it always writes the same, in time."""

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Template as Tree

_LARGEST_FACTOR = 100_000  # as long as Jinja's sandbox lets a range be


def parsed(jinja: str, where: str) -> tuple["Tree", set[str]]:
    """The syntax tree of a template, and the names of what it takes from outside.

    Raises:
        ConfigError: it is no Jinja; or it writes another text each time, or may take all the time and memory there is.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.meta import find_undeclared_variables

    try:
        tree = _environment().parse(jinja)
        _check_calm(tree, where)  # before the search for names, which works out what is constant
        return tree, find_undeclared_variables(tree)
    except (TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(
            "the chat template is not Jinja that can be read",
            found=str(error) + (f" (line {line})" if line else ""),
            where=where,
        ) from None


@cache
def _environment() -> "Environment":
    """Parses what transformers' environment does, and renders nothing."""
    from jinja2 import Environment
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node

    class Generation(Extension):
        """The block around what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 — as the base class has it

        def parse(self, parser: Any) -> list[Node]:
            next(parser.stream)
            body: list[Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


def _check_calm(tree: "Tree", where: str) -> None:
    if drawn := _drawn(tree):
        raise ConfigError("the chat template draws at random", where=where, fix=f"take {drawn} out of it")
    if huge := _huge(tree):
        raise ConfigError(
            "the chat template computes what may take all time and memory",
            found=huge,
            where=where,
            fix="take it out: a template needs to do no more than write messages",
        )


def _drawn(tree: "Tree") -> str:
    """What it draws with; `map` may be told to use a filter by its name."""
    from jinja2.nodes import Const, Filter, Name

    used = list(tree.find_all(Filter))
    mapped = [name.value for each in used if each.name == "map" for name in each.args if isinstance(name, Const)]
    if "random" in {each.name for each in used} | set(mapped):
        return "the filter `random`"
    return "`lipsum`" if any(each.name == "lipsum" for each in tree.find_all(Name)) else ""


def _huge(tree: "Tree") -> str:
    from jinja2.nodes import Const, Mul, Pow

    if power := tree.find(Pow):
        return f"a power, `**` (line {power.lineno})"
    for product in tree.find_all(Mul):
        factor = prod(each.value for each in product.find_all(Const) if isinstance(each.value, int))
        if factor > _LARGEST_FACTOR:
            return f"a product with {factor} (line {product.lineno})"
    return ""
