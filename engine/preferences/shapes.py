"""What a value of a row looks like: the marks by which formats of the same column names are told apart."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from engine.preferences.comparisons import Refused

TURN_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ASSISTANTS = frozenset({"assistant", "gpt", "chatgpt", "bot", "model", "ai"})


class Shape(Enum):
    """A kind of value; its words are for people."""

    NOTHING = "nothing"
    TEXT = "text"
    DIALOGUE = "a whole dialogue as text"
    NUMBER = "a number"
    MESSAGE = "one message"
    REQUEST = "an object with messages"
    OBJECT = "an object"
    EMPTY = "an empty list"
    TURNS = "messages that begin with the user or the system"
    REPLY = "messages that begin with the assistant"
    RANKED = "messages, the last of which holds a list of texts"
    COMPLETIONS = "a list of objects with a `response`"
    EXCHANGES = "a list of pairs of texts"
    TEXTS = "a list of texts"
    NUMBERS = "a list of numbers"
    LIST = "a list of something else"
    BROKEN = "messages or a list written as text, which is cut or broken"
    OTHER = "something else"


TEXT = frozenset({Shape.TEXT, Shape.DIALOGUE})
MESSAGES = frozenset({Shape.TURNS, Shape.REPLY, Shape.EMPTY})
ANYTHING = frozenset(Shape)


class Beside(Refused):
    """A row is refused for what stands in columns that a comparison could do without."""

    def __init__(self, reason: str, detail: str, *columns: str) -> None:
        super().__init__(reason, detail)
        self.columns = columns


@dataclass(frozen=True)
class Unparsed:
    """A text that begins as JSON and is none, in a column whose texts are JSON."""

    text: str


@dataclass(frozen=True)
class Column:
    """Where a format looks for one of its values.

    Attributes:
        names: the names it may have; the first that holds something in a row is taken.
        shapes: what it may look like. With NOTHING among them the column may be absent.
    """

    names: tuple[str, ...]
    shapes: frozenset[Shape]

    @cached_property
    def optional(self) -> bool:
        """Whether a row, and a file, may do without it."""
        return Shape.NOTHING in self.shapes

    def name(self, row: Mapping[str, object]) -> str:
        """The name it has in a row, or would have."""
        return self._held(row)[0]

    def seen(self, row: Mapping[str, object]) -> Shape:
        """What a row holds there."""
        return shape_of(self._held(row)[1])

    def value(self, row: Mapping[str, object]) -> Any:
        """The value of a row, rows of a table of messages as a list of them. Raises Refused for another shape."""
        for name in self.names:  # absent or text is nearly all there is; looking at shapes takes its time
            if (found := row.get(name)) is not None:
                if self._any_text and isinstance(found, str):
                    return found
                break
        else:
            if self.optional:
                return None
        name, held = self._held(row)
        value = as_list(held)
        if (shape := shape_of(value)) not in self.shapes:
            raise self._refused(name, value, shape, row)
        return value

    @cached_property
    def _any_text(self) -> bool:
        return self.shapes >= TEXT

    @cached_property
    def _no_text(self) -> bool:
        return self.shapes.isdisjoint(TEXT)

    def _held(self, row: Mapping[str, object]) -> tuple[str, object]:
        for name in self.names:
            if (value := row.get(name)) is not None:
                # A CSV file has no other way to leave out a list.
                blank = self._no_text and self.optional and isinstance(value, str) and not value.strip()
                return name, None if blank else value
        return self.names[0] if self.names else "", None

    def _refused(self, name: str, value: object, shape: Shape, row: Mapping[str, object]) -> Refused:
        if shape is Shape.NOTHING:
            there = name in row
            lacks = f"`{name}`; the row has {', '.join(row) or 'no fields'}"
            return Refused("null_field", f"`{name}`") if there else Refused("missing_field", lacks)
        reason, seen = "unexpected_type", f"`{name}` is {shape.value}; expected {words(self.shapes)}"
        if isinstance(value, Unparsed):
            reason, seen = "broken_json", f"`{name}`: {value.text}"
        elif self.shapes <= TEXT | {Shape.NOTHING}:
            reason, seen = "not_a_string", f"`{name}` is of type {type(value).__name__}: {shape.value}"
        return Beside(reason, seen, name) if self.optional else Refused(reason, seen)


def words(shapes: frozenset[Shape]) -> str:
    """Shapes for people, in the order in which they are defined."""
    return " or ".join(shape.value for shape in Shape if shape in shapes - {Shape.NOTHING, Shape.EMPTY})


def as_list(value: object) -> object:
    """Messages that come as a table (a list for each field, as older data sets on the Hub have them) as a list."""
    if not isinstance(value, Mapping) or not isinstance(either(value, "role", "from"), list):
        return value
    lists = {name: items for name, items in value.items() if isinstance(items, list)}
    if len({len(items) for items in lists.values()}) != 1:
        return value
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def shape_of(value: object) -> Shape:
    """The shape of any value. A list is judged by all of its items; messages by their first and their last one."""
    value = as_list(value)
    if value is None:
        return Shape.NOTHING
    if isinstance(value, str):
        return Shape.DIALOGUE if TURN_MARK.match(value) else Shape.TEXT
    if isinstance(value, Unparsed):
        return Shape.BROKEN
    if isinstance(value, Mapping):
        if _is_message(value):
            return Shape.MESSAGE
        return Shape.REQUEST if isinstance(value.get("messages"), list) else Shape.OBJECT
    if isinstance(value, list | tuple):
        return _shape_of_list(value)
    return Shape.NUMBER if isinstance(value, int | float) else Shape.OTHER


def _shape_of_list(items: Sequence[object]) -> Shape:
    objects = [item for item in items if isinstance(item, Mapping)]
    if not items:
        return Shape.EMPTY
    if len(objects) == len(items):
        return _shape_of_objects(objects)
    if objects:
        return Shape.TURNS if any(map(_is_message, objects)) else Shape.LIST
    if all(isinstance(item, str | None) for item in items):
        return Shape.TEXTS if any(items) else Shape.NUMBERS
    if all(isinstance(item, int | float | str | None) for item in items):
        return Shape.NUMBERS
    pair = all(isinstance(item, list | tuple) and [type(text) for text in item] == [str, str] for item in items)
    return Shape.EXCHANGES if pair else Shape.LIST


def _shape_of_objects(items: Sequence[Mapping[str, object]]) -> Shape:
    if not any(map(_is_message, items)):
        return Shape.COMPLETIONS if any("response" in item for item in items) else Shape.LIST
    last = either(items[-1], "content", "value")
    if isinstance(last, list) and last and all(isinstance(text, str) for text in last):
        return Shape.RANKED
    first = either(items[0], "role", "from")
    return Shape.REPLY if isinstance(first, str) and first.strip().casefold() in ASSISTANTS else Shape.TURNS


def either(value: Mapping[str, object], first: str, second: str) -> object:
    """What a message has under one of two names; None under both is None."""
    return value.get(first) if value.get(first) is not None else value.get(second)


def _is_message(value: Mapping[str, object]) -> bool:
    return "role" in value or "from" in value
