"""An adapter for use elsewhere: its files, the tokenizer, and what it belongs on, by its name or beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.exporting.chat_template import chat_template_of
from engine.exporting.endings import ending
from engine.exporting.finished import Finished
from engine.exporting.folder import copy_files
from engine.exporting.given_policy import copy_policy
from engine.policies import open_policy, open_tokenizer, place_of
from engine.preferences.templates import Template, template

POLICY = "policy"
_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Belonging:
    """What an adapter belongs on, as whoever loads it has to name it.

    Attributes:
        name: a repository of the Hub, a folder by its whole path, or `policy`, the folder inside the export.
        revision: the commit of a repository, else empty.
        beside: whether it is part of the export.
    """

    name: str
    revision: str = ""
    beside: bool = False

    @property
    def words(self) -> str:
        """For people."""
        if self.beside:
            return f"the policy it was trained on, which lies in the folder {POLICY}/ beside it"
        return f"{self.name} at commit {self.revision}" if self.revision else self.name


def belonging(finished: Finished, *, portable: bool) -> Belonging:
    """What the adapter belongs on.

    A whole model on the Hub is named; one in a folder is named by its path, or copied where the export is to be
    portable; a policy that was made here, or merged from an adapter that was given, exists nowhere else.

    Raises:
        ModelError: the policy that was given cannot be found.
        TransientError: the Hub did not answer.
    """
    model = finished.model
    if "sft" in finished.inputs:
        return Belonging(POLICY, beside=True)
    from engine.models.loading import fetched

    place = place_of(model.policy, model.policy_revision, model, finished.context().sources)
    if (fetched(place, (_CONFIG,)) / _CONFIG).is_file():
        return Belonging(POLICY, beside=True)
    if place.folder is None:
        return Belonging(place.name, place.revision)
    return Belonging(POLICY, beside=True) if portable else Belonging(str(place.folder.resolve()))


def belonging_on_base(finished: Finished, *, portable: bool) -> Belonging:
    """What the adapter belongs on where training went on with the SFT's own: the model below that, `model.name`.

    Raises:
        ConfigError: it was trained on the policy, so there is no such adapter; or its base is in a folder and the
            export is to be portable.
        ModelError, TransientError: as `belonging`.
    """
    model = finished.model
    if not _continued(finished):
        raise ConfigError(
            f"{finished.name} has no adapter on the base",
            expected='a training that went on with the adapter of the SFT: train.lora.start = "sft"',
            found="one of the policy that the SFT left, or its train artifact is gone",
            fix="leave --on-base out: the adapter and its policy go together, or --merge makes one model of them",
        )
    made = finished.inputs["sft"].manifest["payload"]["sources"].get("base") if "sft" in finished.inputs else ""
    revision = made.rpartition("@")[2] if isinstance(made, str) and made else model.revision
    place = place_of(model.name, revision, model, finished.context().sources)
    if place.folder is None:
        return Belonging(place.name, place.revision)
    if portable:
        raise ConfigError(
            "the base lies in a folder, where nobody else finds it",
            found=model.name,
            fix="push without --on-base, or merged",
        )
    return Belonging(str(place.folder.resolve()))


def _continued(finished: Finished) -> Path | None:
    """The adapter on the base, where there is one."""
    folder = finished.lent["train"].path / "continued" if "train" in finished.lent else None
    return folder if folder and (folder / _CONFIG).is_file() else None


def write_adapter(finished: Finished, folder: Path, base: Belonging, *, on_base: bool = False) -> Template:
    """Writes the adapter as it was trained, under the name of its base, with the tokenizer. Returns its template.

    Args:
        on_base: the one for the model below the SFT's adapter, of which `belonging_on_base` says that there is one.

    Raises:
        ModelError: the policy cannot be loaded.
        TransientError: the Hub did not answer.
    """
    continued = _continued(finished) if on_base else None
    copy_files(continued or finished.inputs["train"].file("adapter"), folder)
    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    config |= {"base_model_name_or_path": base.name, "revision": base.revision or None}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    form = template_of(finished)
    save_tokenizer(form, folder)
    if base.beside:
        _write_policy(finished, folder / POLICY)
        _end_answers(form, folder / POLICY)
        save_tokenizer(form, folder / POLICY)
    return form


def template_of(finished: Finished) -> Template:
    """How it is asked. Raises ModelError when its tokenizer cannot be loaded."""
    tokenized = finished.inputs["tokenize"]
    return template(tokenized.handed_down["template"], open_tokenizer(tokenized, finished.model), sealed=True)


def save_tokenizer(form: Template, folder: Path) -> bool:
    """Writes the tokenizer, with a chat template that writes its prompts where there is one; whether there is."""
    tokenizer: Any = form.tokenizer
    before = tokenizer.chat_template
    found = chat_template_of(form)
    try:
        tokenizer.chat_template = found or before
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = before
    return found is not None


def _write_policy(finished: Finished, folder: Path) -> None:
    """The starting policy as it was made; a given one as it is, or merged where it was an adapter."""
    model, given = finished.model, Path(finished.model.policy).expanduser()
    if "sft" in finished.inputs:
        copy_files(finished.inputs["sft"].file("policy"), folder)
    elif (given / "config.json").is_file() and not (given / _CONFIG).is_file():
        copy_policy(given, folder, code=bool(model.allow_code) and model.allow_code == model.policy)
    else:
        how = finished.how
        sources = finished.context().sources
        policy = open_policy(finished.inputs, model, sources, dtype=how["dtype"], attention=how["attention"])
        policy.save_pretrained(str(folder))


def _end_answers(form: Template, folder: Path) -> None:
    from transformers import GenerationConfig

    own = GenerationConfig.from_pretrained(str(folder)) if (folder / "generation_config.json").is_file() else None
    ending(own, form).save_pretrained(str(folder))
