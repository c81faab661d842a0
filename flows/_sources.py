"""What a look at data needs: the source that was named, as the download stage would read it, and a tokenizer for it."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.artifact import Artifact
from engine.config import Settings
from engine.errors import ConfigError, MissingInputError
from engine.preferences.instructions import is_local
from engine.preferences.origin import Origin
from engine.preferences.reading import SUFFIXES
from engine.selection import Selection
from engine.sources import Sources
from flows._given import planned

if TYPE_CHECKING:
    from engine.preferences.templates import Template
    from engine.preferences.tokenizing import Limits
    from tasks.download import Config

_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # of data, none of it
_OWN_FILES = "demo-files"  # the profile for files of one's own, where the one at hand makes its data itself


@dataclass(frozen=True)
class Named:
    """A source that somebody named.

    Attributes:
        config: the profile's download table, with this source in place of its own.
        training: the configuration that trains on it.
    """

    config: "Config"
    training: Settings

    def origins(self, settings: Settings) -> list[Origin]:
        """What there is to read, in order. Raises ConfigError where nothing is there."""
        from tasks.download import origins

        return list(origins(self.config, Sources(settings.runtime.data, network=True)))


def named(settings: Settings, source: str, most: int = 0) -> Named:
    """A path, a glob, a folder or `owner/name` as the download stage would take it.

    Args:
        most: rows to read of each file; 0 for all. A data set on the Hub is streamed, so that no more is transferred.

    Raises:
        ConfigError: the source is no name, or a folder without data files.
    """
    from tasks.download import Config

    table = settings.stages["download"].model_dump()
    place = _place(source, table["split"].partition("[")[0])
    streams = "dataset" in place and "[" not in table["split"]
    given = table | {"files": "", "dataset": "", "embedded_pairs": 0, "streaming": streams, "max_rows": most} | place
    return Named(Config.model_validate(given), _training(settings, place))


def _place(source: str, split: str) -> dict[str, Any]:
    if not source.strip():
        raise ConfigError("no source is named", expected="a path, a glob, a folder, or owner/name on the Hub")
    if not is_local(source):
        return {"dataset": source}
    if not Path(source).expanduser().is_dir():
        return {"files": source}
    found = _patterns(source.rstrip("/"), split)
    if not found:
        raise ConfigError(
            "a folder holds no data files",
            expected=f"names that end in {', '.join(SUFFIXES)}, in the folder itself or in its `data` folder",
            where=source,
            fix="name the folder further down that holds them, or a glob such as FOLDER/*/*.jsonl",
        )
    return {"files": found[0] if len(found) == 1 else found}


def _patterns(folder: str, split: str) -> list[str]:
    """Globs of a folder's data files; where it has none itself, of those below `data`, as in a repository of the Hub:
    of the split, if files are named after it, else all.
    """
    endings = [suffix + packed for suffix in SUFFIXES for packed in ("", ".gz")]
    split = glob.escape(split)
    for names in ("*", f"data/{split}*", f"data/{split}/*", "data/*"):
        patterns = [f"{glob.escape(folder)}/{names}{ending}" for ending in endings]
        found = [pattern for pattern in patterns if _holds_data(pattern)]
        if found:
            return found
    return []


def _holds_data(pattern: str) -> bool:
    matches = glob.glob(str(Path(pattern).expanduser()))  # noqa: PTH207 — as Sources
    return any(Path(match).name not in _DESCRIPTIONS for match in matches)


def _training(settings: Settings, place: dict[str, Any]) -> Settings:
    """The profile with this source for its own; where that one makes its data itself, the one for data from outside."""
    from engine.config import load
    from tasks import SHARED, STAGES

    profile = settings.profile
    if settings.stages["download"].model_dump()["embedded_pairs"]:
        profile, settings = _OWN_FILES, load(_OWN_FILES, settings.overrides, STAGES, SHARED)
    before = settings.stages["download"].model_dump()
    emptied = [f"download.{name}=" for name in ("files", "dataset") if before[name] and name not in place]
    emptied += ["download.streaming=false"] if before["streaming"] and "dataset" not in place else []
    ((name, value),) = place.items()
    overrides = [*settings.overrides, *emptied, f"download.{name}={_toml(value)}"]
    return load(profile, overrides, STAGES, SHARED)


def _toml(value: str | list[str]) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class AtHand:
    """A tokenizer that is here already, and how the profile writes pairs with it.

    Attributes:
        name: where it is from, for people.
        vocabulary: its tokenizer.json, where it has one.
    """

    template: "Template"
    limits: "Limits"
    name: str
    vocabulary: Path | None

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; without a vocabulary to read, the tokenizer's own name of it."""
        from engine.reports.token_view import spelling

        if self.vocabulary is not None:
            try:
                return spelling(self.vocabulary)(ids)
            except (OSError, ValueError):
                pass
        return [str(name) for name in self.template.tokenizer.convert_ids_to_tokens(list(ids))]


def tokenized(settings: Settings) -> Artifact | None:
    """The profile's tokenize artifact, if it is sealed and its files are there. Raises as planning does."""
    artifact = planned(settings, Selection(until="tokenize")).artifacts.get("tokenize")
    return None if artifact is None or artifact.pruned else artifact


def at_hand(settings: Settings) -> AtHand:
    """The tokenizer of the profile's tokenize artifact, or else of the local model that it names. Asks no network.

    Raises:
        MissingInputError: neither is there.
        ModelError, ConfigError: it cannot be loaded, or does not fit the template.
    """
    try:
        made = tokenized(settings)
    except ConfigError:  # the profile's own data may not be there
        made = None
    if made:
        return from_artifact(settings, made)
    config: Any = settings.stages["tokenize"]
    if config.model.name and Path(config.model.name).expanduser().is_dir():
        return _from_folder(config)
    raise MissingInputError(
        "no tokenizer is at hand under this configuration",
        expected="a sealed tokenize artifact, or a local model folder as model.name",
        found=f"model.name is `{config.model.name}`" if config.model.name else "neither",
        fix=settings.command("run", "--until", "tokenize"),
    )


def from_artifact(settings: Settings, made: Artifact) -> AtHand:
    """The tokenizer of a tokenize artifact, with the template and the limits it was made with."""
    from engine.policies import open_tokenizer
    from engine.preferences.templates import template
    from engine.preferences.tokenizing import Limits

    config: Any = settings.stages["tokenize"]
    told = made.handed_down
    form = template(told["template"], open_tokenizer(made, config.model), sealed=True)
    vocabulary = made.path / "tokenizer" / "tokenizer.json"
    limits = Limits(told["max_length"], told["max_prompt_length"])
    return AtHand(form, limits, f"the tokenize artifact {made.key}", vocabulary if vocabulary.is_file() else None)


def _from_folder(config: Any) -> AtHand:
    from engine.models.loading import load_tokenizer
    from engine.preferences.templates import template
    from engine.preferences.tokenizing import Limits

    folder = Path(config.model.name).expanduser()
    form = template(config.template, load_tokenizer(str(folder), allow_code=config.model.own_code_allowed))
    vocabulary = folder / "tokenizer.json"
    limits = Limits(config.max_length, config.prompt_limit)
    return AtHand(form, limits, config.model.name, vocabulary if vocabulary.is_file() else None)
