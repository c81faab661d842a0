"""What a folder or repository of a model holds, looked at before anything of it is loaded.

Four things in it could lead transformers elsewhere than the user pointed: an adapter's config (to the base it names), a
class of another repository, a kernel on the Hub, and an index that spreads the weights over files of any name and kind.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from engine.errors import ModelError
from engine.models.own_code import entries, refuse_foreign

if TYPE_CHECKING:
    from engine.models.loading import Place

_INDEX = "model.safetensors.index.json"
_IMPLEMENTATION = ("_implementation", "_implementation_internal")  # of attention, of experts: how such keys end


def check_contents(place: "Place") -> None:
    """Refuses a whole model whose files lead to another place, or to weights that are no safetensors.

    Only after it may its config be made into anything.

    Raises:
        ModelError: naming what leads there; other errors of transformers and the Hub where its files cannot be read.
    """
    given = place.arguments()
    name = given.pop("pretrained_model_name_or_path")
    given.pop("trust_remote_code")
    if find_adapter_config_file(name, **given):
        raise ModelError(
            "an adapter is named where a whole model is wanted",
            found="adapter_config.json",
            where=place.name,
            fix="set model.name to the adapter's base, and model.policy to the adapter",
        )
    settings = config_of(place)
    refuse_foreign(settings, place.name, "model")
    _refuse_kernels(settings, place.name)
    for file in _weight_files(settings, _index(name, given)):
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                "the model's weights are in files that may not be read",
                expected="files of the same folder whose names end in .safetensors",
                found=str(file),
                where=place.name,
                fix="save it anew with the installed transformers: other formats can run code when they are read",
            )


def config_of(place: "Place") -> Mapping[str, Any]:
    """The config.json that transformers would obey, as it is written; empty where there is none.

    Raises:
        Exception: errors of transformers and the Hub where it cannot be read.
    """
    given = place.arguments()
    given.pop("trust_remote_code")
    settings, _ = PreTrainedConfig.get_config_dict(given.pop("pretrained_model_name_or_path"), **given)
    return dict(settings)


def _refuse_kernels(settings: Mapping[str, Any], where: str) -> None:
    """What implements attention may be `owner/name` on the Hub, whose code would be fetched and run, unasked."""
    for key, value in entries(settings):
        if key.endswith(_IMPLEMENTATION) and "/" in str(value):
            raise ModelError(
                "the model's config names a kernel, which is code of another repository",
                expected="an implementation that transformers holds itself",
                found=f"{key} = {value}",
                where=where,
                fix=f"take {key} out of config.json; which attention runs is said by reference.attention",
            )


def _index(name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of the index of the weights; nothing where they are in one file."""
    path = cached_file(
        name,
        _INDEX,
        **given,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    content = json.loads(Path(path).read_text("utf-8")) if path else {}
    return content if isinstance(content, dict) else {}


def _weight_files(settings: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[object]:
    if settings.get("transformers_weights") is not None:
        yield settings["transformers_weights"]
    files = index.get("weight_map")
    yield from set(files.values()) if isinstance(files, dict) else ()
