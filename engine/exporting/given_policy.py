"""What of a policy's folder is the policy: the files that it is loaded from. Whatever else lies there stays there."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.models.own_code import entries

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_SMALL = (
    _CONFIG, "generation_config.json",
    _TOKENIZER, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def copy_policy(source: Path, target: Path, *, code: bool) -> None:
    """Copies a whole model's config, safetensors and tokenizer, and nothing else: no secrets, no optimizer states.

    Args:
        code: also the Python that its configs name, which its owner allowed to run.

    Raises:
        ModelError: its weights are not there, or a table that names files cannot be read.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = [*_SMALL, *_weights(source), *(_code(source) if code else ())]
    for name in dict.fromkeys(names):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _weights(folder: Path) -> list[str]:
    """Those that transformers would read."""
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    placed = _table(folder / _INDEX).get("weight_map")
    names = sorted(set(map(str, placed.values()))) if isinstance(placed, dict) else []
    for name in names or [_WEIGHTS]:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) or not (folder / name).is_file():
            raise ModelError("the policy's weights are not all there", expected=name, where=str(folder))
    return [_INDEX, *names]


def _code(folder: Path) -> Iterator[str]:
    """The modules of the classes that the configs name, with those that they import from beside them."""
    from transformers.dynamic_module_utils import get_relative_import_files

    for table in (_CONFIG, _TOKENIZER):
        for key, named in entries(_table(folder / table)):
            # A table of names or of lists of names; `owner/name--module.Class` is not in this folder.
            for module in re.findall(r'"(\w+)\.\w+"', json.dumps(named)) if key == "auto_map" else ():
                if (path := folder / f"{module}.py").is_file():
                    yield path.name
                    yield from (Path(each).name for each in get_relative_import_files(path))


def _table(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} of the policy cannot be read", found=str(error), where=str(path)) from None
    return found if isinstance(found, dict) else {}
