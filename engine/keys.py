"""The dotted keys of a configuration: which exist, which one was meant, and what a value's error is about."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Schema = Mapping[str, type[BaseModel]]


def leaves(value: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything that is no table, and of empty tables."""
    for key, item in value.items():
        name = f"{at}.{key}" if at else key
        if isinstance(item, dict) and item:
            yield from leaves(item, name)
        else:
            yield name, item


def known_keys(schema: Schema, shared: Collection[str]) -> set[str]:
    """Every key a profile may hold. A table of `shared` is given once, so `<stage>.<shared>` is none of them."""
    return {
        key
        for name, model in schema.items()
        for key in _keys_of(model, name)
        if name in shared or not any(f"{key}.".startswith(f"{name}.{other}.") for other in shared)
    }


def is_inside_free_table(key: str, schema: Schema) -> bool:
    """Whether the key lies below a field that takes any keys (a dict), or a list, which says itself what it takes."""
    parts = key.split(".")
    above = (_field(".".join(parts[:end]), schema) for end in range(2, len(parts)))
    return any(get_origin(info.annotation) in (dict, list) for info in above if info)


def in_entries(key: str, schema: Schema) -> str:
    """Words on where an unknown key belongs: into the entries of a list in its table that have it; else nothing."""
    table, _, name = key.rpartition(".")
    for field, info in schema[table].model_fields.items() if table in schema else ():
        entry = get_args(info.annotation)[0] if get_origin(info.annotation) is list else None
        if isinstance(entry, type) and issubclass(entry, BaseModel) and name in entry.model_fields:
            return f"put `{name}` into an entry of the list `{table}.{field}`; "
    return ""


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean …?` with the most similar key, or nothing. A bare name is compared with the last parts."""
    by_name = {key: key for key in sorted(known)}
    if "." not in name:
        by_name |= {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name, list(by_name), n=1, cutoff=0.6)
    if not near and "." in name:
        leaf = name.rpartition(".")[2]
        near = [key for key in sorted(known) if key.rpartition(".")[2] == leaf][:1]
    return f"; did you mean `{by_name[near[0]]}`?" if near else ""


def as_the_field_takes_it(key: str, value: object, text: str, schema: Schema) -> object:
    """`value`, or the `text` it was read from where the field takes that text and not the value.

    So `2024` is a number to a field that holds one, and a name to a field that holds a name.
    """
    field = _field(key, schema)
    if isinstance(value, str) or field is None or _accepts(field, value) or not _accepts(field, text):
        return value
    return text


def problem_of(error: ValidationError, name: str, table: Mapping[str, Any]) -> tuple[str, str, str]:
    """(dotted key, sentence, what is expected) for the first place in `table` that did not validate."""
    first = error.errors()[0]
    place = _place(first["loc"], table)
    key = ".".join([name, *place])
    here = [each for each in error.errors() if _place(each["loc"], table) == place]
    if first["type"] == "extra_forbidden":
        return key, f"unknown key `{key}`", ""
    if first["type"] == "missing":
        return f"{key}.{first['loc'][-1]}", f"`{key}` lacks `{first['loc'][-1]}`", ""
    expected = " or ".join(dict.fromkeys(_expected(each["msg"]) for each in here))
    return key, f"`{key}` cannot be {first['input']!r}" if place else f"`{name}` does not hold together", expected


def _keys_of(model: type[BaseModel], at: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{at}.{name}"
        nested = _nested(info)
        if nested:
            yield from _keys_of(nested, f"{at}.{name}")


def _nested(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _field(key: str, schema: Schema) -> FieldInfo | None:
    table, *rest = key.split(".")
    model, info = schema.get(table), None
    for name in rest:
        info = model.model_fields.get(name) if model else None
        model = _nested(info) if info else None
    return info


def _accepts(info: FieldInfo, value: object) -> bool:
    try:
        TypeAdapter[Any](info.annotation or Any).validate_python(value)
    except ValidationError:
        return False
    return True


def _place(location: Sequence[str | int], table: Any) -> list[str]:
    """The parts of pydantic's location that lead into the table; it also names the branches of unions there."""
    place = []
    for part in location:
        here = range(len(table)) if isinstance(table, list) else table if isinstance(table, Mapping) else ()
        if part in here:
            place.append(str(part))
            table = table[part]
    return place


def _expected(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input should be ")
