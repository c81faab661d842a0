"""What can be seen of a model, of data and of this machine before the first run, without reading any weights."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from engine.new_profile import Known
from engine.preferences.instructions import is_local

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
_TUNED_BY_NAME = re.compile(r"(?<![a-z])(instruct|chat|it)(?![a-z])", re.IGNORECASE)
_LOOKED_AT_ROWS = 10_000
_CHARACTERS_PER_TOKEN, _CJK_CHARACTERS_PER_TOKEN = 4.0, 1.4
_GIB = 2**30
_PATIENCE_SECONDS = 10.0


def look(
    model: str,
    data: str | Sequence[str],
    policy: str | None = None,
    gpu_gib: float | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> Known:
    """All that is known at the beginning. Nothing of it needs the network; where there is one, the Hub is asked.

    Args:
        data: paths or globs, or `owner/name` on the Hub.
        policy: what DPO starts from; None: the model itself where it has a chat template or, where nobody can look,
            a name that says so; else one is made.
        gpu_gib: the GPU's memory; None: what torch sees here.
        more: further keys, by table; those of `download` tell how the data is read.

    Raises:
        ConfigError: no file is there under that name.
        DataError: the files cannot be read, or their format is not known.
    """
    chat = has_chat_template(model)
    by_name = policy is None and chat is None and says_tuned(model)
    download = dict((more or {}).get("download", {}))
    return Known(
        model=model,
        policy=policy if policy is not None else (model if chat or by_name else ""),
        chat=chat,
        by_name=by_name,
        parameters=parameters_of(model),
        gpu_gib=seen_gpu_gib() if gpu_gib is None else gpu_gib,
        more={name: dict(table) for name, table in (more or {}).items() if name != "download"},
        **_data(data, download),
    )


def parameters_of(model: str) -> float | None:
    """Billions of parameters: of a folder by the size of its weights, of the Hub by what it tells, else by the name.

    A name may say more than its size, as `7B-Instruct-1M` does: the largest number is the model's.
    """
    folder = _folder(model)
    if folder:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return size / _BYTES.get(_dtype(folder), 4) / 1e9 if size else None
    told = _asked_hub(model)
    if told and told.safetensors:
        return float(told.safetensors.total) / 1e9
    found = _SIZE_IN_NAME.findall(model.rpartition("/")[2].replace("-", " ").replace("_", " "))
    return max((float(number) / (1000 if unit.lower() == "m" else 1) for number, unit in found), default=None)


def has_chat_template(model: str) -> bool | None:
    """Whether the tokenizer of a folder, or of a repository in reach, has one; None where nobody can look."""
    folder = _folder(model)
    if folder:
        template = _json(folder / "tokenizer_config.json").get("chat_template")
        return bool(template) or any((folder / name).exists() for name in _TEMPLATES)
    told = _asked_hub(model)
    if told is None:
        return None
    names = {file.rfilename for file in told.siblings or ()}
    return bool(names & set(_TEMPLATES) or ((told.config or {}).get("tokenizer_config") or {}).get("chat_template"))


def says_tuned(model: str) -> bool:
    """Whether the last part of a name says that the model was tuned to answer: Instruct, Chat, or it."""
    return bool(_TUNED_BY_NAME.search(model.rstrip("/").rpartition("/")[2]))


def seen_gpu_gib() -> float:
    """Memory of the first CUDA device that torch sees; 0 for none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / _GIB if torch.cuda.is_available() else 0.0


_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def _folder(model: str) -> Path | None:
    with suppress(OSError, ValueError):  # no name that a folder can have
        return Path(model) if Path(model).is_dir() else None
    return None


@cache
def _asked_hub(model: str) -> Any:
    """What the Hub tells of a repository in one question, or None. A wrong name is told by the first run."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # the client lets the errors of its HTTP library through, and those vary
        return HfApi().model_info(model, timeout=_PATIENCE_SECONDS)
    return None


def _dtype(folder: Path) -> str:
    config = _json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(data: str | Sequence[str], download: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Known` that tell of the data: its keys, its format in words, how many pairs, how long."""
    names = [data] if isinstance(data, str) else list(data)
    if len(names) == 1 and not is_local(names[0]):
        return {"download": {"dataset": names[0]} | download}
    given = names[0] if len(names) == 1 else names
    return {"download": {"files": given} | download} | _seen(given, download)


def _seen(files: str | list[str], download: Mapping[str, Any]) -> dict[str, Any]:
    from engine.preferences.formats import candidates
    from engine.preferences.inspection import Inspection
    from engine.preferences.origin import Origin, pairs_of
    from engine.preferences.reading import read
    from engine.sources import Sources

    asked = (download.get("fields", {}), download.get("format", ""), download.get("ranking", "all"))
    known = candidates(*asked, download.get("ignore", ()))
    encoding, seen, formats, whole = download.get("encoding", "utf-8"), Inspection(), dict[str, None](), True
    for path in Sources(Path(), network=False).files(files):
        origin = Origin(str(path), lambda path=path: read(path, encoding))  # type: ignore[misc]
        form = origin.detect(known).format
        formats[form.name] = None
        rows = origin.records()
        for record in islice(rows, max(0, _LOOKED_AT_ROWS - seen.rows)):
            seen.add(record, pairs_of(record, form))
        whole = whole and next(iter(rows), None) is None
    numbers = seen.as_dict()
    words = f"{', '.join(formats)}; {seen.pairs:,} pairs in {'' if whole else 'the first '}{seen.rows:,} rows"
    return {"data": words, "pairs": seen.pairs if whole else None, "tokens": _tokens(numbers)}


def _tokens(numbers: Mapping[str, Any]) -> int | None:
    """About as many as nine in ten prompts and longer answers have together, by their characters."""
    lengths, languages = numbers["characters"], numbers["languages"]
    if not lengths or not languages:
        return None
    characters = int(lengths["prompt"]["90"]) + max(lengths["chosen"]["90"], lengths["rejected"]["90"])
    cjk = float(languages["cjk"])
    return int(characters / (cjk * _CJK_CHARACTERS_PER_TOKEN + (1 - cjk) * _CHARACTERS_PER_TOKEN))
