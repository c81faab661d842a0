"""Profiles: a TOML file over the defaults, checked whole before anything runs.

A profile has one table per stage, `[model]`, which every stage that has a field `model` receives, and `[runtime]`,
which says where and how fast the work is done and is never part of an artifact's identity.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from engine.errors import ConfigError

PROFILES = Path(__file__).parent.parent / "configs"


class Located:
    """Marks a field that says where a thing lies. It is left out of the identity; the thing's content stands in."""


class Strict(BaseModel):
    """A frozen config that refuses unknown keys and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def identity(self) -> dict[str, Any]:
        """Every field that bears meaning, as JSON-like values; `Located` fields are left out."""
        return {
            name: value.identity() if isinstance(value, Strict) else self.model_dump(mode="json", include={name})[name]
            for name, info in type(self).model_fields.items()
            if not any(isinstance(mark, Located) for mark in info.metadata)
            for value in [getattr(self, name)]
        }


class Runtime(Strict):
    """Where and how fast. Changing any of it changes no result beyond float rounding, so none of it is hashed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, description="CPU threads for torch; 0 leaves torch's own choice")
    artifacts: Path = Path("artifacts")
    data: Path = Path("data")
    micro_batch_pairs: int = Field(default=8, ge=1, description="pairs that go through the model at once")
    score_batch_pairs: int = Field(default=32, ge=1, description="pairs scored at once by the reference")
    generation_batch: int = Field(default=32, ge=1, description="prompts answered at once")
    log_every_steps: int = Field(default=10, ge=1)
    checkpoint_every_seconds: float = Field(default=120.0, gt=0)
    checkpoints_kept: int = Field(default=2, ge=1)
    lock_wait_seconds: float = Field(default=3600.0, ge=0, description="wait for another run that makes the same thing")


class HasConfig(Protocol):
    """What this module needs to know of a stage."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> type[Strict]: ...


@dataclass(frozen=True)
class Settings:
    """A whole, checked configuration: one config per stage and the runtime."""

    profile: str
    stages: Mapping[str, Strict]
    runtime: Runtime
    shared: Mapping[str, Strict]

    def as_dict(self) -> dict[str, Any]:
        """Everything in force as plain values, in the shape of a profile."""
        tables = {name: config.model_dump(mode="json") for name, config in (self.shared | self.stages).items()}
        for stage in self.stages:
            for name in self.shared:
                tables[stage].pop(name, None)
        return {"profile": self.profile} | tables | {"runtime": self.runtime.model_dump(mode="json")}


def load(profile: str, overrides: Sequence[str], stages: Sequence[HasConfig], shared: Mapping[str, type[Strict]]) -> Settings:
    """The settings of `profile` (a name in configs/ or a path to a TOML file) with `key=value` overrides on top.

    Raises:
        ConfigError: no such profile, text that is not TOML, an unknown key, or an impossible value.
    """
    path = profile_path(profile)
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML", found=str(error), where=str(path)) from None
    origin = {key: str(path) for key, _ in _leaves(tables)}
    for override in overrides:
        key, value = _parse_override(override)
        _put(tables, key, value)
        origin[key] = f"override `{override}`"
    schema: dict[str, type[Strict]] = {**shared, **{stage.name: stage.config for stage in stages}, "runtime": Runtime}
    _refuse_unknown(tables, schema, shared, origin)
    built = {name: _build(name, model, tables.get(name, {}), origin) for name, model in shared.items()}
    configs = {
        stage.name: _build(stage.name, stage.config, tables.get(stage.name, {}) | _shared_of(stage.config, built), origin)
        for stage in stages
    }
    runtime = _build("runtime", Runtime, tables.get("runtime", {}), origin)
    assert isinstance(runtime, Runtime)
    return Settings(path.stem, configs, runtime, built)


def profile_path(profile: str) -> Path:
    """The file behind a profile's name or path. Raises ConfigError naming the nearest profile."""
    path = Path(profile) if profile.endswith(".toml") else PROFILES / f"{profile}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in PROFILES.glob("*.toml"))
        raise ConfigError(
            f"there is no profile `{profile}`{_did_you_mean(profile, known)}",
            expected=f"one of {', '.join(known)}, or the path of a .toml file",
            where=str(path),
        )
    return path


def _shared_of(config: type[Strict], built: Mapping[str, Strict]) -> dict[str, Strict]:
    return {name: value for name, value in built.items() if name in config.model_fields}


def _parse_override(text: str) -> tuple[str, object]:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"cannot read the override `{text}`", expected="key=value, for example train.beta=0.2")
    try:
        return key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key, raw


def _put(tables: dict[str, Any], key: str, value: object) -> None:
    *parents, leaf = key.split(".")
    table = tables
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"`{key}` cannot be set: `{'.'.join(parents[: depth + 1])}` is a value, not a table")
    table[leaf] = value


def _leaves(value: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        name = f"{at}.{key}" if at else key
        if isinstance(item, dict):
            yield from _leaves(item, name)
        else:
            yield name, item


def _refuse_unknown(
    tables: Mapping[str, Any], schema: Mapping[str, type[Strict]], shared: Mapping[str, type[Strict]], origin: Mapping[str, str]
) -> None:
    known = {
        key
        for name, model in schema.items()
        for key in _keys(model, name)
        if name in shared or not any(key == f"{name}.{other}" or key.startswith(f"{name}.{other}.") for other in shared)
    }
    tables_known = set(schema) | {key.rpartition(".")[0] for key in known}
    for key, value in _leaves(tables):
        inside_free_table = any(key.startswith(f"{free}.") for free in _free_tables(schema))
        if key not in known and not inside_free_table:
            raise ConfigError(
                f"unknown key `{key}`{_did_you_mean(key, known | tables_known)}",
                found=f"{key} = {value!r}",
                where=_origin(key, origin),
                fix="`dpo config` prints every key in force",
            )
    for name, value in tables.items():
        if not isinstance(value, dict):
            raise ConfigError(f"`{name}` is a table, not a value", found=repr(value), where=_origin(name, origin))


def _keys(model: type[Strict], at: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        nested = _nested(info)
        yield f"{at}.{name}"
        if nested:
            yield from _keys(nested, f"{at}.{name}")


def _nested(info: FieldInfo) -> type[Strict] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Strict) else None


def _free_tables(schema: Mapping[str, type[Strict]]) -> list[str]:
    return [
        f"{name}.{field}"
        for name, model in schema.items()
        for field, info in model.model_fields.items()
        if getattr(info.annotation, "__origin__", None) is dict
    ]


def _build(name: str, model: type[Strict], table: Mapping[str, Any], origin: Mapping[str, str]) -> Strict:
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *(str(part) for part in first["loc"])])
        raise ConfigError(
            f"`{key}` cannot be {first['input']!r}" if first["loc"] else f"`{name}` does not hold together",
            expected=first["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
            where=_origin(key, origin),
        ) from None


def _origin(key: str, origin: Mapping[str, str]) -> str:
    return next((place for name, place in origin.items() if key == name or key.startswith(f"{name}.")), "")


def _did_you_mean(name: str, known: set[str] | list[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
    if not near and "." in name:
        leaf = name.rpartition(".")[2]
        near = [key for key in sorted(known) if key.rpartition(".")[2] == leaf][:1]
    return f"; did you mean `{near[0]}`?" if near else ""
