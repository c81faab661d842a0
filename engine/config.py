"""Profiles: a TOML file over the defaults, checked whole before anything runs.

A profile has one table per stage, `[model]`, which every stage that has a field `model` receives, and `[runtime]`,
which says where and how fast the work is done and is never part of an artifact's identity.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import to_jsonable_python

from engine.errors import ConfigError
from engine.fingerprint import digest
from engine.keys import (
    Schema,
    as_the_field_takes_it,
    in_entries,
    is_inside_free_table,
    known_keys,
    leaves,
    nearest,
    problem_of,
)

PROFILES = Path(__file__).parent.parent / "configs"


class Located:
    """Marks a field that says where a thing lies. It is left out of the identity; the thing's content stands in."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    """A frozen config that refuses unknown keys, infinite numbers, and true and false where numbers are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if _holds_bool(value) and not _names_bool(kind):
            raise ValueError("a number or a text, not true or false")
        return value

    def identity(self) -> dict[str, Any]:
        """Every field that bears meaning, as JSON-like values; `Located` fields are left out."""
        return {
            name: _identity(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if not any(isinstance(mark, Located) or mark is Located for mark in info.metadata)
        }

    def changed(self, at: str, default: "Strict | None" = None) -> Iterator[tuple[str, Any]]:
        """(dotted key below `at`, plain value) of every field that is not as in `default`; without one, as in its own.

        A config in a field has the default of that field, which may be another than that of its class.
        """
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            usual = getattr(default, name) if default else info.get_default(call_default_factory=True)
            if isinstance(value, Strict):
                yield from value.changed(f"{at}.{name}", usual if isinstance(usual, type(value)) else None)
            elif to_jsonable_python(value) != to_jsonable_python(usual):
                yield f"{at}.{name}", to_jsonable_python(value)


def _holds_bool(value: object) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, bool) for item in items)


def _names_bool(kind: object) -> bool:
    """Whether a type holds `bool` somewhere, or is a config, which looks at its own fields."""
    if isinstance(kind, type) and issubclass(kind, bool | Strict):
        return True
    return any(_names_bool(part) for part in get_args(kind))


def _identity(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    return to_jsonable_python(value)


_LONGEST_NAME = 64  # of a service; it becomes the name of a folder

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]  # each the name of its package, too


class Runtime(Strict):
    """Where and how fast. Changing it changes no result beyond float rounding, so it is not hashed.

    One thing is an exception: with dropout, which rows go through the model at once decides which draws they get, and
    so the result. Where a stage trains with dropout, what decides that is part of its identity: see `binds_draws`.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, description="CPU threads for torch; 0 leaves torch's own choice")
    artifacts: Path = Path("artifacts")
    data: Path = Path("data")
    service: str = Field(
        default="",
        pattern=r"^(\w[\w.-]*)?$",
        max_length=_LONGEST_NAME,
        description="which model in service this profile's models are held against and replace; empty: the profile's "
        "own name",
    )
    layout: Literal["auto", "packed", "shared", "padded", "single"] = Field(
        default="auto", description="how rows are laid out for the model; auto: the fastest that is shown right"
    )
    micro_batch_tokens: int = Field(default=4096, ge=1, description="tokens trained on at once; lowered to what fits")
    score_batch_tokens: int = Field(default=16384, ge=1, description="tokens scored at once; likewise")
    score_shard_tokens: int = Field(
        default=65536, ge=1, description="tokens scored between two saves; a kill loses them"
    )
    memory_limit_gib: float = Field(default=0.0, ge=0, description="memory to keep within; 0: what is there")
    gradient_checkpointing: bool = Field(default=False, description="less memory for half as much time again")
    compile: bool = Field(default=False, description="torch.compile; it needs a compiler, and minutes to begin")
    generation_batch: int = Field(default=32, ge=1, description="prompts answered at once")
    log_every_steps: int = Field(default=10, ge=1)
    deterministic: bool = Field(
        default=False, description="slower; on a GPU a resumed training equals one that ran through only with it"
    )
    checkpoint_every_seconds: float = Field(default=120.0, gt=0)
    checkpoint_every_steps: int = Field(default=0, ge=0, description="as well as by time; 0: by time only")
    checkpoints_kept: int = Field(default=2, ge=1)
    every_hours: float = Field(default=0.0, ge=0, description="how often this profile is meant to run; 0: no rhythm")
    lock_wait_seconds: float = Field(default=3600.0, ge=0, description="wait for another run that makes the same thing")
    trackers: list[Tracker] = Field(default=["tensorboard"], description="told of every training step; [] for none")
    tracker_project: str = Field(
        default="dpo-pipeline",
        pattern=r"^\w[\w .-]*$",
        max_length=_LONGEST_NAME,
        description="what W&B, MLflow and Trackio keep the runs under",
    )

    @field_validator("trackers")
    @classmethod
    def _can_be_told(cls, trackers: list[Tracker]) -> list[Tracker]:
        """Raises ConfigError where a tracker's package is not installed."""
        if len(set(trackers)) < len(trackers):
            raise ValueError("every tracker once")
        for name in trackers:
            if find_spec(name) is None:
                raise ConfigError(
                    f"the tracker `{name}` needs the package `{name}`",
                    where="runtime.trackers",
                    fix=f"pip install '.[{name}]', or leave it out of runtime.trackers",
                )
        return trackers


class HasConfig(Protocol):
    """What this module needs to know of a stage."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> type[Strict]: ...


@dataclass(frozen=True)
class Settings:
    """A whole, checked configuration: one config per stage and the runtime.

    Attributes:
        profile: the name or path it was loaded by.
        overrides: the `key=value` texts that were put on top of it.
    """

    profile: str
    stages: Mapping[str, Strict]
    runtime: Runtime
    shared: Mapping[str, Strict]
    overrides: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything in force as plain values: the name of the profile, and its tables with every key."""
        tables = {name: config.model_dump(mode="json") for name, config in {**self.shared, **self.stages}.items()}
        for stage in self.stages:
            for name in self.shared:
                tables[stage].pop(name, None)
        return {"profile": self.profile} | tables | {"runtime": self.runtime.model_dump(mode="json")}

    @property
    def named_runtime(self) -> Runtime:
        """The runtime, with the profile's own name for the model in service where none is given.

        Files of one name in two folders are two profiles: one that is not in configs/ has a digest of its place in it.
        """
        name = one_name(self.profile)
        own = re.sub(r"[^\w.-]+", "-", Path(name.removesuffix(".toml")).name).strip(".-")[:_LONGEST_NAME]
        if own != name:
            own = f"{own or 'profile'}-{digest(name)[:8]}"
        return self.runtime.model_copy(update={"service": self.runtime.service or own})

    def changed(self) -> dict[str, Any]:
        """Dotted key and plain value of whatever differs from the defaults."""
        found: dict[str, Any] = {}
        for name, config in {**self.shared, **self.stages, "runtime": self.runtime}.items():
            found.update(config.changed(name))
        return {
            key: value
            for key, value in found.items()
            if not any(key.startswith(f"{stage}.{name}.") for stage in self.stages for name in self.shared)
        }

    def command(self, verb: str, *more: str) -> str:
        """The `dpo` command, to copy into a shell, that does `verb` under this same configuration."""
        words = ["dpo", verb, "--profile", self.profile, *more]
        return shlex.join([*words, *(word for override in self.overrides for word in ("--set", override))])


def load(
    profile: str,
    overrides: Sequence[str],
    stages: Sequence[HasConfig],
    shared: Mapping[str, type[Strict]],
) -> Settings:
    """The settings of `profile` (a name in configs/ or a path to a TOML file) with `key=value` overrides on top.

    Raises:
        ConfigError: no such profile, text that is not TOML, an unknown key, or an impossible value.
    """
    path = profile_path(profile)
    try:
        return _load(profile, path, overrides, stages, shared)
    except RecursionError:
        raise ConfigError(
            "the configuration is nested too deeply", expected="tables in tables, a few levels deep", where=str(path)
        ) from None


def _load(
    profile: str,
    path: Path,
    overrides: Sequence[str],
    stages: Sequence[HasConfig],
    shared: Mapping[str, type[Strict]],
) -> Settings:
    schema: dict[str, type[Strict]] = {**shared, **{stage.name: stage.config for stage in stages}, "runtime": Runtime}
    tables = _read(path)
    origin = {key: str(path) for key, _ in leaves(tables)}
    _refuse_huge(tables, origin)
    for override in overrides:
        key, value = _parse_override(override, schema)
        _refuse_huge({key: value}, {key: f"override `{override:.60}`"})
        _put(tables, key, value)
        origin.pop(key, None)  # so that it comes last
        origin[key] = f"override `{override}`"
    _refuse_unknown(tables, schema, shared, origin)
    built = {name: _build(name, model, tables.get(name, {}), origin) for name, model in shared.items()}
    configs = {
        stage.name: _build(
            stage.name, stage.config, tables.get(stage.name, {}) | _shared_of(stage.config, built), origin
        )
        for stage in stages
    }
    runtime = _build("runtime", Runtime, tables.get("runtime", {}), origin)
    assert isinstance(runtime, Runtime)
    return Settings(profile, configs, runtime, built, tuple(overrides))


def read_overrides(
    overrides: Sequence[str], stages: Sequence[HasConfig], shared: Mapping[str, type[Strict]]
) -> dict[str, Any]:
    """`key=value` texts as the tables of a profile. Raises ConfigError where one cannot be read or is no key."""
    schema: dict[str, type[Strict]] = {**shared, **{stage.name: stage.config for stage in stages}, "runtime": Runtime}
    tables: dict[str, Any] = {}
    for override in overrides:
        key, value = _parse_override(override, schema)
        _put(tables, key, value)
        _refuse_unknown(tables, schema, shared, {key: f"override `{override}`"})
    return tables


def profile_path(profile: str) -> Path:
    """The file behind a profile's name or path. Raises ConfigError naming the nearest profile."""
    path = Path(profile) if profile.endswith(".toml") else PROFILES / f"{profile}.toml"
    if not _is_file(path):
        known = sorted(file.stem for file in PROFILES.glob("*.toml"))
        raise ConfigError(
            f"there is no profile `{profile}`{nearest(profile, known)}",
            expected=f"one of {', '.join(known)}, or the path of a .toml file",
            where=str(path),
        )
    return path


def one_name(profile: str) -> str:
    """What a profile is called, however it was given: by its bare name in configs/, else by the path of its file.

    A bare name outlives a clone that moves. A profile that is no longer there is called as it was given.
    """
    try:
        path = profile_path(profile).resolve()
        return path.stem if path.parent == PROFILES.resolve() else str(path)
    except (ConfigError, OSError, RuntimeError):  # the last for links in a circle
        return profile


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:  # no TOML, no UTF-8, or a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML", found=str(error), where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", found=str(error), where=str(path)) from None


def _shared_of(config: type[Strict], built: Mapping[str, Strict]) -> dict[str, Strict]:
    return {name: value for name, value in built.items() if name in config.model_fields}


def _parse_override(text: str, schema: Schema) -> tuple[str, object]:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"cannot read the override `{text}`", expected="key=value, for example train.beta=0.2")
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except RecursionError:
        raise ConfigError(f"`{key}` is nested too deeply", found=f"{raw[:40]}…") from None
    except ValueError:
        return key, raw
    if set(parsed) != {"value"}:  # text of several lines that happens to be TOML
        return key, raw
    return key, as_the_field_takes_it(key, parsed["value"], raw.strip(), schema)


def _put(tables: dict[str, Any], key: str, value: object) -> None:
    *parents, leaf = key.split(".")
    table = tables
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"`{key}` cannot be set: `{'.'.join(parents[: depth + 1])}` is a value, not a table",
                found=repr(table),
                fix=f"set `{'.'.join(parents[: depth + 1])}` as a whole",
            )
    table[leaf] = value


def _refuse_huge(tables: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    for key, value in leaves(tables):
        if _holds_huge(value):  # which could not even be printed in an error
            raise ConfigError(
                f"`{key}` holds a number that is too large", expected="integers of 64 bits", where=_origin(key, origin)
            )


def _holds_huge(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_huge, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _refuse_unknown(
    tables: Mapping[str, Any], schema: Schema, shared: Mapping[str, type[Strict]], origin: Mapping[str, str]
) -> None:
    for name, value in tables.items():
        if name in schema and not isinstance(value, dict):
            raise ConfigError(f"`{name}` is a table, not a value", found=repr(value), where=_origin(name, origin))
    known = known_keys(schema, set(shared))
    for key, value in leaves(tables):
        if key in known or is_inside_free_table(key, schema) or (key in schema and value == {}):
            continue
        raise ConfigError(
            f"unknown key `{key}`{nearest(key, known | set(schema))}",
            found=f"{key} = {value!r}",
            where=_origin(key, origin),
            fix=f"{in_entries(key, schema)}`dpo config` prints every key in force",
        )


def _build(name: str, model: type[Strict], table: Mapping[str, Any], origin: Mapping[str, str]) -> Strict:
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        key, problem, expected = problem_of(error, name, table)
        raise ConfigError(problem, expected=expected, where=_origin(key, origin)) from None


def _origin(key: str, origin: Mapping[str, str]) -> str:
    """Where a key got its value: the last override of it, of its table, or of something in it; else the file."""
    related = [
        place
        for name, place in origin.items()
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")
    ]
    return related[-1] if related else ""
